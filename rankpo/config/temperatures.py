"""Default temperatures: the value of `temperature: auto` in a loss, which depends on the scores of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.config.construct import build, locate
from rankpo.losses.temperature import LOGITS, HasTemperature

if TYPE_CHECKING:
    from rankpo.models.kind import AnyKind

AUTO = "auto"


def settled(tree: Mapping[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The config with numbers in place of `temperature: auto` in the loss of the run and in those of datasets.

    explicit: keys under `model` that the command line sets. For a model that cannot be built, whose problems the check
    reports, the scores count as logits.
    """
    nodes = {name: tree[name] for name in ("loss", "objectives") if tree.get(name)}
    if AUTO not in str(nodes):
        return dict(tree)
    try:
        scale = scale_of(build(tree["model"], "model"), explicit)
    except ValueError:  # A ConfigError is one too.
        scale = LOGITS
    return {**tree, **{name: resolved(node, scale) for name, node in nodes.items()}}


def scale_of(model: AnyKind, explicit: Collection[str]) -> str:
    """The scale of a model's scores, by the keys of the config and those of its folder, before the weights are loaded.

    explicit: keys under `model` that the command line sets. A checkpoint that is not on this machine counts as one
    without settings of its own. Raises ValueError for damaged files.
    """
    settings, place = model.settings, None if model.is_random else model.load_from or model.name_or_path
    if place is not None and Path(place).is_dir():
        known = {item.name for item in fields(settings)}
        stated = {name: value for name, value in model.early_statement(Path(place)).items() if name in known}
        settings = settings.preferring(stated, explicit, place)[0]
    return model.scale(settings)


def resolved(node: Any, scale: str) -> Any:
    """A node of a loss, or of several, with numbers in place of `temperature: auto`. scale: see `HasScale`."""
    if isinstance(node, list):
        return [resolved(item, scale) for item in node]
    if not isinstance(node, Mapping):
        return node
    made = {name: resolved(value, scale) for name, value in node.items()}
    if made.get("temperature") == AUTO and (default := _default(made.get("_target_"), scale)) is not None:
        made["temperature"] = default
    return made


def _default(target: object, scale: str) -> float | None:
    """The temperature of a loss; None for a class that does not exist or is no loss."""
    try:
        found = locate(target)
    except ValueError:
        return None
    if isinstance(found, type) and issubclass(found, HasTemperature):
        return found.default_temperature(scale)
    return None
