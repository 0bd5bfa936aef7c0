"""Keys that every dataset can have besides those of its class, such as its own loss, negatives and prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from rankpo.config.construct import Maker, build, construct, locate, maker
from rankpo.config.experiment import OwnObjective
from rankpo.config.places import CONFIG
from rankpo.config.value_types import type_problem
from rankpo.data.mixing import TOGETHER, Mixing
from rankpo.data.prompted import Prompted
from rankpo.data.readers.by_file import by_file
from rankpo.data.readers.named_collections import HoldsSets
from rankpo.data.readers.records import Records
from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from rankpo.data.dataset import Dataset
    from rankpo.models.kind import ModelKind

Node = Mapping[str, Any]  # A node of a config, with the types of YAML.
Keys = dict[str, Any]
OWN_PROMPTS = {"query_prompt": "str | None", "passage_prompt": "str | None"}
OWN_TRAINING = {  # Keys that give a dataset an objective of its own.
    "loss": "str | Mapping | None",
    "negatives": "str | None",
    "num_negatives": "int | None",
    "temperature": "float | None",
}
OWN_KEYS = {**OWN_TRAINING, **OWN_PROMPTS, "by_file": "bool"}  # The keys and their types.
NEGATIVES = ("in_batch", "own")
LIKE = "like"  # The key that names the option whose keys a dataset copies.
GROUPS = ("datasets", "eval_datasets", "replay_datasets")


def own_keys(group: str, node: Node) -> Keys:
    """The keys of a dataset that this module reads, by name.

    A key that the class of the dataset also has belongs to the class, except for negatives=in_batch and negatives=own.
    With other values, `negatives` of a dataset of records is the name of a field.
    """
    allowed = OWN_KEYS if group == "datasets" else OWN_PROMPTS
    given = [name for name in allowed if name in node]
    try:
        taken = inspect.signature(locate(node["_target_"])).parameters if given else {}  # type: ignore[arg-type]
    except ValueError:  # `build` reports the problem of the class.
        return {}
    return {
        name: node[name] for name in given if name not in taken or (name == "negatives" and node[name] in NEGATIVES)
    }


def expanded(config: DictConfig) -> DictConfig:
    """The config, where each dataset with the key `like` gets the keys of that option. Raises ConfigError."""
    problems: list[str] = []
    for group in GROUPS:
        nodes = config.get(group)
        if not isinstance(nodes, DictConfig):
            continue
        for name in list(nodes):
            node = nodes[name]
            if not isinstance(node, DictConfig) or "_target_" in node:
                continue
            option = node.get(LIKE)
            if option is None:
                chosen = ", ".join(str(key) for key in nodes if key != name and "_target_" in nodes[key]) or "none"
                problems.append(
                    f"{group}.{name} is not a dataset of this run, which has {chosen}; add it with the keys of jsonl by "
                    f"{group}=[{name}:jsonl]"
                )
                continue
            defaults = _option(group, str(option), str(name))
            given = {key: value for key, value in node.items_ex(resolve=False) if key != LIKE}
            with open_dict(config):
                nodes[name] = {**defaults, _name_key(defaults): str(name), **given}
    if problems:
        raise ConfigError(problems)
    return config


def _name_key(defaults: Keys) -> str:
    """The key with the name of a dataset. For a dataset of the hub, `name` is the hub id."""
    return "alias" if "alias" in defaults else "name"


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of some overrides, with the search path of the running program. Raises ConfigError."""
    try:
        if GlobalHydra.instance().is_initialized():
            return compose("config", overrides=list(overrides))
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except HydraException as error:
        raise ConfigError([str(error).strip().splitlines()[0]]) from error


def _option(group: str, option: str, name: str) -> Keys:
    """The keys of an option of a group of datasets. Raises ConfigError."""
    try:
        nodes = composed([f"{group}=[{option}]"])[group]
    except ConfigError as error:
        raise ConfigError([f"{group}.{name}.{LIKE}={option}: {error}"]) from error
    if len(nodes) != 1:
        raise ConfigError(
            [f"{group}.{name}.{LIKE}={option} stands for several datasets, {', '.join(nodes)}; choose one of them"]
        )
    (node,) = nodes.values()
    return dict(node.items_ex(resolve=False))


def key_problems(tree: Node) -> list[str]:
    """One line for each value of a key of this module that is of the wrong type or not allowed."""
    found: list[str | None] = []
    for group in GROUPS:
        for name, node in (tree.get(group) or {}).items():
            found += [type_problem(OWN_KEYS[k], v, f"{group}.{name}.{k}") for k, v in own_keys(group, node).items()]
    for name, whole in (tree.get("datasets") or {}).items():
        node = own_keys("datasets", whole)
        if (given := node.get("negatives")) not in (None, *NEGATIVES):
            found.append(f"datasets.{name}.negatives must be in_batch, own or null, got {given!r}")
        if isinstance(count := node.get("num_negatives"), int) and count < 0:
            found.append(f"datasets.{name}.num_negatives must be >= 0 or null, got {count}")
    return [problem for problem in found if problem is not None]


def datasets_of(nodes: Mapping[str, Node], group: str, name: str) -> list[Dataset]:
    """The datasets of a node with its prompts: one, or with by_file one for each file. Raises ConfigError."""
    node, key = nodes[name], f"{group}.{name}"
    own = own_keys(group, node)
    dataset = build({name: value for name, value in node.items() if name not in own}, key)
    parts = [dataset]
    if own.get("by_file"):
        if not isinstance(dataset, Records):
            raise ConfigError([f"{key}.by_file=true: {type(dataset).__name__} does not read files of records"])
        try:
            parts = list(by_file(dataset))
        except ValueError as error:
            raise ConfigError([f"{key}.{error}"]) from error
    if isinstance(dataset, HoldsSets):
        if group != "eval_datasets":
            raise ConfigError(
                [f"{key}: {type(dataset).__name__} stands for sets to evaluate on; use it in eval_datasets"]
            )
        parts = list(dataset.sets())
    query, passage = own.get("query_prompt"), own.get("passage_prompt")
    return parts if query is None and passage is None else [Prompted(part, query, passage) for part in parts]


def own_objective(tree: Node, name: str, model: ModelKind | None) -> OwnObjective | None:
    """The objective of a dataset if it has its own, or None. Raises ConfigError."""
    node = (tree.get("objectives") or {}).get(name)
    if node is None:
        return None
    loss = build(node["loss"], f"datasets.{name}.loss")
    return OwnObjective(
        loss=loss if model is None else loss.fitted(model.logps),
        trainer=Maker(key=f"datasets.{name}.loss", target=node["trainer"], arguments={}),
        dataloader=maker(node["dataloader"], f"datasets.{name}"),
    )


def mixing_of(tree: Node) -> Mixing:
    """How updates are drawn from several datasets. Raises ConfigError."""
    replayed = tree["replay_dataloader"].get("mixing", "auto")
    if replayed not in TOGETHER:
        raise ConfigError([f"replay_dataloader.mixing={replayed}: replay_datasets are always mixed; remove this key"])
    given = {key: value for key, value in tree["dataloader"].items() if key.startswith("mixing")}
    mixing = construct(Mixing, given, "dataloader")
    assert isinstance(mixing, Mixing)
    nodes = tree.get("datasets") or {}
    own = {name: keys for name, node in nodes.items() if (keys := own_training(node))}
    if mixing.mixing == "mixed" and own:
        name, keys = next(iter(own.items()))
        raise ConfigError(
            [
                f"dataloader.mixing=mixed draws each update from all datasets with one loss, and "
                f"datasets.{name}.{keys[0]} applies to one of them; set dataloader.mixing=homogeneous, or remove it"
            ]
        )
    keys_of = [own_keys("datasets", node) for node in nodes.values()]
    prompts = {tuple(keys.get(key) for key in OWN_PROMPTS) for keys in keys_of}
    return mixing.settled(bool(own) or len(prompts) > 1 or any(keys.get("by_file") for keys in keys_of))


def stream_problems(tree: Node) -> list[str]:
    """One line for each choice that a streamed dataset does not allow."""
    nodes = tree.get("datasets") or {}
    streamed = [f"datasets.{name}" for name, node in nodes.items() if node.get("streaming")]
    for group in ("eval_datasets", "replay_datasets"):
        streamed += [f"{group}.{name}" for name, node in (tree.get(group) or {}).items() if node.get("streaming")]
    if not streamed:
        return []
    trainer = tree["trainer"]
    refused = {
        "only training data is streamed": any(not key.startswith("datasets.") for key in streamed),
        "a streamed dataset is trained alone, without others beside it": len(nodes) > 1,
        "it has no epoch; set trainer.max_steps to the number of updates": trainer.get("max_steps") is None,
        "trainer.holdout draws from all queries; leave it out, and evaluate on a file": trainer.get("holdout")
        is not None,
        "reference scores of all data cannot be stored; leave trainer.reference=stored out": trainer.get("reference")
        == "stored",
        "cache_reference_logprobs stores scores of all data; leave it out": bool(tree["cache_reference_logprobs"]),
        "only task=train reads a stream: mining, encoding and inspection need all texts; set streaming=false, or a limit": (
            not str(tree["task"]["_target_"]).endswith(".Train")
        ),
    }
    return [f"{streamed[0]}.streaming=true: {why}" for why, holds in refused.items() if holds]


def own_training(node: Node) -> list[str]:
    """The keys that give a dataset an objective of its own."""
    return [key for key, value in own_keys("datasets", node).items() if key in OWN_TRAINING and value is not None]


def objectives(tree: Node) -> Keys:
    """The nodes `loss`, `trainer` and `dataloader` of each dataset with its own objective, by the dataset's key.

    Raises ConfigError for a key that the loss or its loader does not have.
    """
    made = {}
    for name, node in (tree.get("datasets") or {}).items():
        if isinstance(node, Mapping) and own_training(node):
            made[name] = _objective(tree, node, f"datasets.{name}")
    return made


def _objective(tree: Node, node: Node, key: str) -> Keys:
    own = own_keys("datasets", node)
    given = own.get("loss")
    settings: Keys = {}
    source: Node = tree
    if given is not None:
        option, settings = _loss(given, f"{key}.loss")
        try:
            source = OmegaConf.to_container(composed([f"loss={option}"]), resolve=True)  # type: ignore[assignment]
        except ConfigError as error:
            raise ConfigError([f"{key}.loss={option}: {error}"]) from error
    loss = dict(source["loss"])
    loader = {name: value for name, value in source["dataloader"].items() if not name.startswith("mixing")}
    for name, value in settings.items():
        _put(loss, name, value, f"{key}.loss")
    for name in ("negatives", "temperature"):
        if own.get(name) is not None:
            _put(loss, name, own[name], key)
    if own.get("num_negatives") is not None:
        _put(loader, "num_negatives", own["num_negatives"], key)
    return {"loss": loss, "trainer": source["trainer"]["_target_"], "dataloader": loader}


def _loss(given: object, key: str) -> tuple[str, Keys]:
    """The option of the group loss, and further keys."""
    if isinstance(given, Mapping):
        if not isinstance(given.get("name"), str):
            raise ConfigError(
                [f"{key} must have the key `name` with an option of the loss, such as {key}={{name: cosent}}"]
            )
        return str(given["name"]), {name: value for name, value in given.items() if name != "name"}
    return str(given), {}


def _put(node: Keys, name: str, value: object, key: str) -> None:
    """Sets a key of a loss or loader. Raises ConfigError if it has no such key."""
    if name not in node:
        owner = str(node["_target_"]).rpartition(".")[2]
        known = ", ".join(other for other in node if other != "_target_")
        raise ConfigError([f"{key}.{name}={value}: {owner} has no key {name}; its keys are {known or 'none'}"])
    node[name] = value
