"""Settings of a model that its weights determine: those of the checkpoint's authors, and `by_kind` of its yaml."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.config.value_types import type_problem
from rankpo.errors import ConfigError, unknown
from rankpo.models.kind import GIVES
from rankpo.models.kinds import kind_class
from rankpo.models.known import known_settings
from rankpo.storage.json_files import read_json

if TYPE_CHECKING:
    from rankpo.losses.base import Loss
    from rankpo.models.kind import ModelKind


# Losses of each kind, for messages.
USUAL_LOSSES = {
    "embedding": "loss=contrastive or loss=rankpo",
    "late_interaction": "loss=contrastive or loss=kl_distill",
    "sparse": "loss=contrastive or loss=margin_mse",
    "hybrid": "loss=m3",
    "reranker": "loss=softmax or loss=pointwise",
    "listwise": "loss=listwise_generation or loss=listwise_combined",
    "causal_lm": "loss=dpo or loss=sft",
    "reward_model": "loss=bradley-terry",
}


def settled(node: Mapping[str, Any], target: Any, explicit: Collection[str]) -> dict[str, Any]:
    """The keys of `model`, with settings of the weights in place of the kind's defaults.

    node: the composed group, with `by_kind`. target: the `ModelKind` class of its `_target_`. explicit: keys under
    `model` that the command line sets. These keep their values, and so does every key whose value differs from the
    kind's default, because another yaml has set it. Raises ConfigError if `by_kind` is not a mapping of mappings.
    """
    kept = {name: value for name, value in node.items() if name != "by_kind"}
    by_kind = node.get("by_kind") or {}
    for key, value in {"by_kind": by_kind, **{f"by_kind.{kind}": keys for kind, keys in by_kind.items()}}.items():
        if problem := type_problem("Mapping[str, object]", value, f"model.{key}"):
            raise ConfigError([problem])
    parameters = inspect.signature(target).parameters
    if strange := [name for name in by_kind.get(target.kind, {}) if name not in parameters]:
        raise ConfigError([unknown(f"model.by_kind.{target.kind}", name, parameters) for name in strange])
    stated = {**known_settings(node.get("name_or_path"), target.kind), **by_kind.get(target.kind, {})}
    for name, value in stated.items():
        given = name in explicit or (name in parameters and kept.get(name) != parameters[name].default)
        if not given:
            kept[name] = value
    return kept


def other_kind(model: ModelKind, loss: Loss | None, overrides: Sequence[str]) -> str | None:
    """The message if a folder of rankpo holds another kind than the loss or the task chooses, or None.

    A kind on the command line is accepted; its class then reads the folder or raises an error. loss: None if the task
    does not train.
    """
    if model.load_from is None or any(item.lstrip("+").startswith("kind=") for item in overrides):
        return None
    record = Path(model.load_from) / "rankpo.json"
    if not record.is_file():
        return None
    saved = read_json(record).get("kind")
    if saved in (model.kind, *model.starts_from):
        return None
    holds = f"model.load_from={model.load_from} holds a model of kind {saved}"
    if loss is None or saved not in USUAL_LOSSES:
        return f"{holds}, and the loss or the task chooses kind={model.kind}; add kind={saved}"
    name = next((item for item in overrides if item.startswith("loss=")), type(loss).__name__)
    others = f"load a model of kind {model.kind}, or train this one by {USUAL_LOSSES[saved]}"
    if (loss.needs & frozenset(GIVES)) - kind_class(saved).gives:
        return f"{holds}, which {name} cannot train; {others}"
    return f"{holds}, and {name} trains a {model.kind} by default; add kind={saved} to apply it to this model, {others}"
