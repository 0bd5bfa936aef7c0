"""Old class names of saved configs, and the form in which configs of two versions are compared.

The `_target_`s of a config are data: `task=evaluate task.run=` builds the model that a run's config.json names, a
continued run compares its config with the saved one, and a sweep skips jobs whose config finished before.
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

MODULES = {  # by release; an old module of a yaml's class and where the class lives now
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
CLASSES = {  # old class name in its module of today, and the name of the class today
    "rankpo.models.causal_lm.config.CausalModelConfig": "CausalKind",
    "rankpo.models.embedding.config.EmbeddingModelConfig": "EmbeddingKind",
    "rankpo.models.listwise.config.ListwiseModelConfig": "ListwiseKind",
    "rankpo.models.reranker.config.RerankerModelConfig": "RerankerKind",
}


def current(target: str) -> str:
    """Today's name of a `_target_`, which may have been written by an earlier version."""
    module, _, name = target.rpartition(".")
    if not module:
        return target
    module = MODULES.get(module, module)
    return f"{module}.{CLASSES.get(f'{module}.{name}', name)}"


def translated(tree: object) -> object:
    """The config with today's name in every `_target_`."""
    if isinstance(tree, list):
        return [translated(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    return {
        name: current(value) if name == "_target_" and isinstance(value, str) else translated(value)
        for name, value in tree.items()
    }


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config with today's names, and with the default of every constructor argument that it leaves out.

    A key that a later version added is no difference as long as it has the value under which nothing changes.
    """
    completed = _completed(translated(tree))
    for name in {"dataloader", "replay_dataloader"} & {*completed}:  # so are the keys of mixing
        completed[name] = {**dataclasses.asdict(Mixing()), **completed[name]}
    if "trainer" in completed:  # a trainer's keys are those of TrainerSettings, not of its class
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
    """The default arguments of a class of ours; nothing for a class that is not there."""
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
    """Whether JSON has the value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
