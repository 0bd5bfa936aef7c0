"""Old class names in saved configs, and the normal form for the comparison of configs of two versions.

Saved `_target_`s are read again: `task=evaluate task.run=` builds the model of a run's config.json, a continued run
compares its config with the saved one, and a sweep skips jobs whose config has finished before.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rankpo.data.mixing import Mixing
from rankpo.trainers.settings import TrainerSettings

MODULES = {  # Old modules of classes that a yaml names, and their new modules, by release.
    "rankpo.data.beir": "rankpo.data.readers.beir",
    "rankpo.data.chat_records": "rankpo.data.readers.chat",
    "rankpo.data.completion_loaders": "rankpo.data.loaders.completion",
    "rankpo.data.dataloaders": "rankpo.data.loaders.ranking",
    "rankpo.data.jobs": "rankpo.data.generated.jobs",
    "rankpo.data.listwise_loader": "rankpo.data.loaders.listwise_prompts",
    "rankpo.data.ranked_lists": "rankpo.data.readers.ranked_lists",
    "rankpo.data.sources": "rankpo.data.readers.records",
    "rankpo.data.toy_chat": "rankpo.data.generated.toy_chat",
    "rankpo.data.toy_lists": "rankpo.data.generated.toy_lists",
    "rankpo.data.unpaired_loader": "rankpo.data.loaders.unpaired_preference",
    "rankpo.models.build": "rankpo.models.embedding.config",
    "rankpo.models.build_listwise": "rankpo.models.listwise.config",
    "rankpo.models.build_reranker": "rankpo.models.reranker.config",
    "rankpo.models.causal_config": "rankpo.models.causal_lm.config",
    "rankpo.search": "rankpo.sweeps.optuna",
}
CLASSES = {  # Old class names with the current module, and the current class names.
    "rankpo.models.causal_lm.config.CausalModelConfig": "CausalKind",
    "rankpo.models.embedding.config.EmbeddingModelConfig": "EmbeddingKind",
    "rankpo.models.listwise.config.ListwiseModelConfig": "ListwiseKind",
    "rankpo.models.reranker.config.RerankerModelConfig": "RerankerKind",
}


def current(target: str) -> str:
    """The current name of a `_target_`, which an earlier version may have written."""
    module, _, name = target.rpartition(".")
    if not module:
        return target
    module = MODULES.get(module, module)
    return f"{module}.{CLASSES.get(f'{module}.{name}', name)}"


def translated(tree: object) -> object:
    """The config with the current name in every `_target_`."""
    if isinstance(tree, list):
        return [translated(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    return {
        name: current(value) if name == "_target_" and isinstance(value, str) else translated(value)
        for name, value in tree.items()
    }


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config with current names, and with the default of every missing constructor argument.

    Therefore a key that a later version added makes no difference as long as it has its default value.
    """
    completed = _completed(translated(tree))
    for name in {"dataloader", "replay_dataloader"} & {*completed}:  # The keys of mixing are in the same node.
        completed[name] = {**dataclasses.asdict(Mixing()), **completed[name]}
    if "trainer" in completed:  # The keys of a trainer are those of TrainerSettings, not of its class.
        completed["trainer"] = {**dataclasses.asdict(TrainerSettings()), **completed["trainer"]}
    return json.loads(json.dumps(completed))


def _completed(tree: object) -> Any:
    if isinstance(tree, list):
        return [_completed(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    node = {name: _completed(value) for name, value in tree.items()}
    return {**_defaults(node["_target_"]), **node} if isinstance(node.get("_target_"), str) else node


def _defaults(target: str) -> dict[str, object]:
    """The default arguments of a class of rankpo; empty for a class that does not exist."""
    module, _, name = target.rpartition(".")
    if not module.startswith("rankpo.") or name.endswith("Trainer"):
        return {}
    try:
        found = vars(import_module(module))[name]
    except (ImportError, KeyError):
        return {}
    if not dataclasses.is_dataclass(found):
        given = {item.name: item.default for item in inspect.signature(found).parameters.values()}
    else:
        given = {item.name: _default(item) for item in dataclasses.fields(found)}
    return {name: value for name, value in given.items() if _is_plain(value)}


def _default(field: dataclasses.Field[object]) -> object:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    value = field.default_factory()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _is_plain(value: object) -> bool:
    """Whether JSON can represent the value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
