"""From a composed config to checked objects: the one caller of constructors by name, and every compatibility check.

Nothing here loads weights or data; `check` collects all problems before it raises.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rankpo.config.guard import leaves, secrets
from rankpo.config.messages import unknown
from rankpo.config.moved import current
from rankpo.config.value_types import type_problem, type_problems
from rankpo.config.weights import other_kind, settled
from rankpo.errors import ConfigError
from rankpo.trainers.settings import TrainerSettings

if TYPE_CHECKING:
    from rankpo.losses.base import Loss
    from rankpo.models.kind import ModelKind
    from rankpo.trainers.schedules import Schedule

ALLOWED_TARGETS = ("rankpo.", "torch.optim.", "transformers.", "peft.")
RUN_KEYS = {  # and their types
    "exp_name": "str | int",
    "seed": "int",
    "cache_dir": "str",
    "run_count": "str | int",
    "run_dir": "str",
    "overwrite": "bool",
    "resume": "str | None",
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
]


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A class and its keyword arguments, kept until the objects that it also needs exist."""

    key: str
    target: str
    arguments: Mapping[str, Any]

    def load(self) -> Any:
        return locate(self.target)

    def make(self, **more: Any) -> Any:
        """The object. Raises ConfigError naming the key for a value that the class refuses."""
        try:
            return self.load()(**self.arguments, **more)
        except ValueError as error:
            raise ConfigError([_prefixed(self.key, str(error), self.arguments)]) from error


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a task may need, checked. config: the resolved config, for the run directory."""

    task: Any
    loss: Loss
    model: ModelKind
    datasets: Sequence[Any]
    eval_datasets: Sequence[Any]
    replay_datasets: Sequence[Any]
    trainer: Maker
    settings: TrainerSettings
    dataloader: Maker
    replay_dataloader: Maker
    optimizer: Maker
    schedule: Schedule
    tracker: Mapping[str, Any]
    exp_name: str
    seed: int
    cache_dir: Path
    run_dir: Path
    overwrite: bool
    resume: str | None
    cache_reference_logprobs: bool
    load_reference_logprobs: str | None
    config: Mapping[str, Any]
    explicit: frozenset[str]
    mining: Any = None  # with task=mine
    judge: Any = None  # with task=annotate


def locate(target: Any) -> Any:
    """The class of a `_target_`. Raises ValueError for anything outside the allowed packages, or not there.

    A name that an allowed module only imports from elsewhere is outside, and a function is no class.
    """
    target = current(target) if isinstance(target, str) else target  # `permit` refuses what is no text
    permit(target)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_={target} does not exist: {error}") from error
    if not inspect.isclass(found) or not f"{found.__module__}.".startswith(ALLOWED_TARGETS):
        raise ValueError(f"_target_={target} is not allowed; it must be a class of {', '.join(ALLOWED_TARGETS)}")
    return found


def permit(target: Any) -> None:
    """Raises ValueError for a `_target_` outside the allowed packages; imports nothing."""
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        raise ValueError(f"_target_={target} is not allowed; it must begin with {', '.join(ALLOWED_TARGETS)}")


def plain_tree(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The config as a run's folder keeps it: resolved, with `~` as the home directory, and with the settings of the
    model that follow from its weights. Raises ConfigError.
    """
    tree: dict[str, Any] = _at_home(OmegaConf.to_container(config, resolve=True))
    try:
        target = locate(tree["model"].get("_target_"))
    except ValueError as error:
        raise ConfigError([f"model.{error}"]) from error
    tree["model"] = settled(tree["model"], target, _model_keys(overrides))
    return tree


def check(config: DictConfig, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a config describes. Raises ConfigError with every problem, one line each."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError([f"{key} is not set; add {key}=…" for key in missing])
    tree = plain_tree(config, overrides)
    if found := secrets(list(leaves(tree))):
        raise ConfigError(found)  # alone: other messages would show the values
    problems = [unknown("the config", name, (*RUN_KEYS, *GROUPS)) for name in tree if name not in (*RUN_KEYS, *GROUPS)]
    problems += filter(None, (type_problem(annotation, tree[name], name) for name, annotation in RUN_KEYS.items()))

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    made: dict[str, Any] = {}
    for name in ("task", "loss", "scheduler"):
        made[name] = attempt(partial(build, tree[name], name))
    made["model"] = attempt(partial(build, tree["model"], "model"))
    made["schedule"] = made.pop("scheduler")
    for name in ("mining", "judge"):
        if name in tree:
            made[name] = attempt(partial(build, tree[name], name))
    if made["loss"] is not None and made["model"] is not None:
        made["loss"] = made["loss"].fitted(made["model"].logps)
    for group in ("datasets", "eval_datasets", "replay_datasets"):
        nodes = tree.get(group) or {}
        made[group] = [attempt(partial(build, nodes[name], f"{group}.{name}")) for name in nodes]
    trainer = dict(tree["trainer"])
    attempt(partial(_permit_trainer, trainer.get("_target_")))
    made["trainer"] = Maker(key="trainer", target=trainer.pop("_target_", ""), arguments={})
    made["settings"] = attempt(partial(construct, TrainerSettings, trainer, "trainer"))
    for name in ("dataloader", "replay_dataloader", "optimizer"):
        made[name] = attempt(partial(maker, tree[name], name))
    problems.extend(_compatibility(made, tree))
    if made["model"] is not None and (problem := other_kind(made["model"], overrides)):
        problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return Experiment(
        **made,
        tracker=tree["tracker"],
        config=tree,
        explicit=frozenset(_model_keys(overrides)),
        cache_dir=Path(tree["cache_dir"]),
        run_dir=Path(tree["run_dir"]),
        **{name: tree[name] for name in RUN_KEYS if name not in ("cache_dir", "run_count", "run_dir")},
    )


def _permit_trainer(target: Any) -> None:
    """Raises ConfigError; the class is loaded with its data, since importing it takes seconds."""
    try:
        permit(target)
    except ValueError as error:
        raise ConfigError([f"trainer.{error}"]) from error


def _at_home(value: Any) -> Any:
    """The value with `~/` at the front of texts as the home directory: a shell leaves it alone behind `key.path=`."""
    if isinstance(value, dict):
        return {name: _at_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def run(experiment: Experiment) -> None:
    """Runs the task."""
    experiment.task(experiment)


def build(node: Any, key: str) -> Any:
    """The object of a node with `_target_`, its children built first. Raises ConfigError naming `key`."""
    if isinstance(node, list):
        return tuple(build(item, f"{key}[{index}]") for index, item in enumerate(node))
    if not isinstance(node, Mapping):
        return node
    children = {name: build(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return children
    try:
        target = locate(node["_target_"])
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error
    return construct(target, children, key)


def construct(target: Any, arguments: Mapping[str, Any], key: str) -> Any:
    """target(**arguments); unknown and missing keys and refused values become a ConfigError naming them."""
    signature(target, arguments, key)
    try:
        return target(**arguments)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([_prefixed(key, str(error), arguments)]) from error


def maker(node: Mapping[str, Any], key: str) -> Maker:
    """A Maker whose keys exist. Raises ConfigError."""
    arguments = {name: build(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    try:
        target = locate(node["_target_"])
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error
    signature(target, arguments, key, complete=False)
    return Maker(key=key, target=node["_target_"], arguments=arguments)


def signature(target: Any, arguments: Mapping[str, Any], key: str, complete: bool = True) -> None:
    """Raises ConfigError for keys that `target` does not take or, if `complete`, needs and lacks, and for values of
    another type than it declares.
    """
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    problems = [
        unknown(f"{key}.{name}: {target.__name__}", name, parameters) for name in arguments if name not in parameters
    ]
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if complete:
        problems += [f"{key}.{name} is not set; add {key}.{name}=…" for name in needed if name not in arguments]
    problems += type_problems(target, arguments, key)
    if problems:
        raise ConfigError(problems)


def _prefixed(key: str, message: str, names: Iterable[str]) -> str:
    """The message with the group's key in front, unless it names it already. names: of the keys of the group."""
    if message.startswith((f"{key}.", f"{key}:", f"{key} ", "datasets.")):
        return message
    first = re.split(r"[^\w]", message, maxsplit=1)[0]
    return f"{key}.{message}" if first in names else f"{key}: {message}"


def _model_keys(overrides: Sequence[str]) -> list[str]:
    """Keys under `model` that the command line sets."""
    names = (item.lstrip("+~").split("=", 1)[0] for item in overrides)
    return [name.removeprefix("model.") for name in names if name.startswith("model.")]


def _compatibility(made: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """Choices that exist each for itself and do not work together."""
    problems = []
    settings: TrainerSettings | None = made["settings"]
    # the loss has a default: tasks that do not train must not be refused for it
    loss = made["loss"] if getattr(made["task"], "trains", False) else None
    model = made["model"]
    if settings is not None and model is not None and settings.reference == "adapters" and not model.use_peft:
        problems.append("trainer.reference=adapters needs model.use_peft=true: there are no adapters to switch off")
    if settings is not None and loss is not None and settings.precision == "fp16" and settings.max_grad_norm is None:
        problems.append("trainer.precision=fp16 needs trainer.max_grad_norm: overflowing updates are found by the norm")
    if loss is not None and tree["trainer"]["_target_"].endswith(".ContrastiveTrainer") and not _is_in_batch(loss):
        problems.append(f"trainer=contrastive cannot train {type(loss).__name__}; leave trainer out: loss=… chooses it")
    if loss is not None and model is not None:
        problems += _unmet_needs(loss, model)
    if loss is not None and model is not None and settings is not None:
        problems += _reference_problems(tree, loss, model, settings)
    if "search" in tree:
        problems.append("search=optuna chooses the jobs of a sweep; start it with: python launch.py -m search=optuna …")
    if tree["resume"] not in (None, "auto"):
        problems.append(f"resume must be auto or null, got {tree['resume']!r}")
    if not str(tree["exp_name"]).strip():
        problems.append("exp_name must not be empty: it names the run directory")
    for group in ("datasets", "eval_datasets", "replay_datasets"):
        if not isinstance(tree.get(group) or {}, Mapping):
            problems.append(f"{group} must be a list of options, such as {group}=[jobs]")
    return problems


def _is_in_batch(loss: Loss) -> bool:
    from rankpo.losses.in_batch import InBatchLoss

    return isinstance(loss, InBatchLoss)


# Need of a loss: what it is, and what to try where the model's kind does not give it.
GIVEN_BY_KINDS = {
    "token_logps": (
        "token log-probabilities",
        "Add kind=causal_lm with a decoder, such as model=llama, qwen or pythia.",
    ),
    "vectors": (
        "embeddings",
        "Add kind=embedding; or try loss=softmax, which compares a positive with the candidates of its own list.",
    ),
    "lists": ("rankings of whole lists", "Add kind=listwise with a decoder, such as model=llama, qwen or mistral."),
}


def _unmet_needs(loss: Loss, model: ModelKind) -> list[str]:
    """A line for every need of the loss that the kind of the model does not give."""
    chosen = model.name_or_path or "of random weights"
    return [
        f"{loss.asked_by(need)} needs {name}; model {chosen} is of kind {model.kind} and gives none. {advice}"
        for need, (name, advice) in GIVEN_BY_KINDS.items()
        if need in loss.needs and need not in model.gives
    ]


def _reference_problems(tree: Mapping[str, Any], loss: Loss, model: ModelKind, settings: TrainerSettings) -> list[str]:
    """Reference scores that are asked for and that the loss cannot use, or that two keys want from two places."""
    asked = [key for key in ("cache_reference_logprobs", "load_reference_logprobs") if tree[key]]
    needs = loss.needs_with(model.gives)
    problems = []
    for key in asked:
        if "reference" not in needs:
            problems.append(f"{key}: {type(loss).__name__} has no reference; leave it out")
        elif "live_reference" in needs:
            problems.append(f"{key}: {type(loss).__name__} needs the reference model itself, not stored scores")
        elif settings.reference not in ("auto", "stored"):
            problems.append(
                f"{key} stores reference scores, and trainer.reference={settings.reference} does not; set auto"
            )
    if len(asked) == 2:
        problems.append("cache_reference_logprobs would compute what load_reference_logprobs brings; set one of them")
    if settings.reference == "stored" and "live_reference" in needs:
        problems.append(
            f"trainer.reference=stored: {type(loss).__name__} needs the reference model itself, not stored scores; "
            "set trainer.reference=live, or auto"
        )
    return problems
