"""Check of a composed config before weights and data are loaded. It reports all problems, one per line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rankpo.config import packages, temperatures
from rankpo.config.compatibility import incompatible
from rankpo.config.construct import Maker, build, construct, locate, maker
from rankpo.config.experiment import Experiment
from rankpo.config.guard import leaves, secrets
from rankpo.config.messages import elsewhere, unknown
from rankpo.config.run_folder import CACHE, RUNS, runs_of
from rankpo.config.several import (
    datasets_of,
    expanded,
    key_problems,
    mixing_of,
    objectives,
    own_objective,
    stream_problems,
)
from rankpo.config.value_types import type_problem
from rankpo.config.weights import settled
from rankpo.errors import ConfigError
from rankpo.trainers.settings import TrainerSettings

RUN_KEYS = {  # Keys and their types.
    "exp_name": "str | int",
    "seed": "int",
    "runs_dir": "str | None",
    "cache_dir": "str",
    "run_count": "str | int",
    "run_dir": "str",
    "overwrite": "bool",
    "resume": "str | None",
    "allow_changes": "bool",
    "cache_reference_logprobs": "bool",
    "load_reference_logprobs": "str | None",
}
GROUPS = [
    "task",
    "loss",
    "model",
    "datasets",
    "eval_datasets",
    "replay_datasets",
    "trainer",
    "dataloader",
    "replay_dataloader",
    "optimizer",
    "scheduler",
    "tracker",
    "mining",
    "judge",
    "search",
    "objectives",
]
OPTIONAL = ("datasets", "eval_datasets", "replay_datasets", "mining", "judge", "search", "objectives")
NEEDED = [name for name in GROUPS if name not in OPTIONAL]


def _absent(config: DictConfig) -> list[str]:
    """One line for each key and group that every run needs and this config lacks, for example because of ~scheduler."""
    problems = [f"{name} is not set, and every run needs it; remove ~{name}" for name in RUN_KEYS if name not in config]
    for name in NEEDED:
        if name not in config:
            problems.append(f"{name} is not set, and every run needs one; remove ~{name}, or choose {name}=…")
        elif not isinstance(config[name], DictConfig):
            problems.append(f"{name} must be an option of its group, got {config[name]!r}; choose {name}=…")
    return problems


def check(config: DictConfig, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a config describes. Raises ConfigError with every problem, one line each."""
    config = expanded(config)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError([f"{key} is not set; add {key}=…" for key in missing])
    if absent := _absent(config):
        raise ConfigError(absent)
    tree = plain_tree(config, overrides)
    problems = [line for name in tree if name not in (*RUN_KEYS, *GROUPS) for line in _unknown(tree, name)]
    problems += filter(None, (type_problem(annotation, tree[name], name) for name, annotation in RUN_KEYS.items()))
    made = _objects(tree, problems)
    problems += incompatible(made, tree, overrides)
    if problems:
        raise ConfigError(problems)
    return Experiment(
        **made,
        tracker=tree["tracker"],
        config=tree,
        explicit=frozenset(_model_keys(overrides)),
        runs_dir=Path(runs_of(tree["runs_dir"], tree["cache_dir"])),
        cache_dir=Path(tree["cache_dir"]),
        run_dir=Path(tree["run_dir"]),
        **{name: tree[name] for name in RUN_KEYS if name not in ("runs_dir", "cache_dir", "run_count", "run_dir")},
    )


def _unknown(tree: Mapping[str, object], name: str) -> list[str]:
    """A line for a key that a `++` has added and that nothing reads, or for each key below it."""
    value, allowed = tree[name], (*RUN_KEYS, *GROUPS)
    if not isinstance(value, Mapping) or not value:
        return [unknown("the config", name, allowed, [key for key in elsewhere(tree, name) if key != name])]
    rest = {key: item for key, item in tree.items() if key != name}
    below = [key for key, _ in leaves(value, name)]
    return [
        unknown(f"{key}: the config", name, allowed, elsewhere(rest, last), last)
        for key in below
        for last in [key.rpartition(".")[2]]
    ]


def plain_tree(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The config for the run directory: resolved, with `~` expanded, and with settings that the weights determine.

    overrides: the command line. The packages that it declares are permitted after this call. Raises ConfigError.
    """
    tree: dict[str, Any] = _at_home(OmegaConf.to_container(expanded(config), resolve=True))
    if found := secrets(list(leaves(tree))):
        raise ConfigError(found)  # Stop here, because other messages would print the secret values.
    packages.declare(tree.pop("packages", None), overrides)
    tree.update({name: _where_runs_are(value) for name, value in tree.items() if name not in RUN_KEYS})
    try:
        target = locate(tree["model"].get("_target_"))
    except ValueError as error:
        raise ConfigError([f"model.{error}"]) from error
    tree["model"] = settled(tree["model"], target, _model_keys(overrides))
    if own := objectives(tree):
        tree["objectives"] = own
    return temperatures.settled(tree, _model_keys(overrides))


def _objects(tree: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The objects of all groups by their names in `Experiment`; None for a group with problems.

    problems: a list to which the problems are appended.
    """

    def attempt(make: Callable[[], object]) -> Any:
        try:
            return make()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    single = ("task", "loss", "scheduler", "model", *(name for name in ("mining", "judge") if name in tree))
    made = {name: attempt(partial(build, tree[name], name)) for name in single}
    made["schedule"] = made.pop("scheduler")
    if made["loss"] is not None and made["model"] is not None:
        made["loss"] = made["loss"].fitted(made["model"].logps)
    problems.extend([*key_problems(tree), *stream_problems(tree)])
    for group in ("eval_datasets", "replay_datasets"):
        nodes = tree.get(group) or {}
        made[group] = [data for name in nodes for data in attempt(partial(datasets_of, nodes, group, name)) or [None]]
    nodes = tree.get("datasets") or {}
    made["datasets"], made["objectives"] = [], []
    for name in nodes:
        parts = attempt(partial(datasets_of, nodes, "datasets", name)) or [None]
        made["datasets"] += parts
        made["objectives"] += [attempt(partial(own_objective, tree, name, made["model"]))] * len(parts)
    made["mixing"] = attempt(partial(mixing_of, tree))
    trainer = dict(tree["trainer"])
    attempt(partial(_permit_trainer, trainer.get("_target_")))
    made["trainer"] = Maker(key="trainer", target=trainer.pop("_target_", ""), arguments={})
    made["settings"] = attempt(partial(construct, TrainerSettings, trainer, "trainer"))
    for name in ("dataloader", "replay_dataloader", "optimizer"):
        node = {key: value for key, value in tree[name].items() if not key.startswith("mixing")}
        made[name] = attempt(partial(maker, node, name))
    return made


def _permit_trainer(target: object) -> None:
    """Raises ConfigError for a trainer outside the permitted packages. Importing the class takes seconds and is done later."""
    try:
        packages.permit(target)
    except ValueError as error:
        raise ConfigError([f"trainer.{error}"]) from error


def _at_home(value: object) -> Any:
    """Expands `~/` at the start of strings to the home directory. A shell does not expand it after `key.path=`."""
    if isinstance(value, dict):
        return {name: _at_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def _where_runs_are(value: object) -> object:
    """Replaces `.cache/RUN…`, the folder of runs in earlier versions, by `runs/RUN…` if only the latter exists."""
    if isinstance(value, dict):
        return {name: _where_runs_are(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_where_runs_are(item) for item in value]
    if not isinstance(value, str) or not value.startswith(f"{CACHE}/") or Path(value).exists():
        return value
    moved = f"{RUNS}/{value.removeprefix(f'{CACHE}/')}"
    return moved if Path(moved).exists() else value


def _model_keys(overrides: Sequence[str]) -> list[str]:
    """Keys under `model` that the command line sets."""
    names = (item.lstrip("+~").split("=", 1)[0] for item in overrides)
    return [name.removeprefix("model.") for name in names if name.startswith("model.")]
