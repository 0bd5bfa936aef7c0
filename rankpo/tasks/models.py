"""Models of tasks: the model of the config, and the models of a run with the heads that its loss added."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from rankpo.config.construct import build
from rankpo.errors import ConfigError, StorageError
from rankpo.models.causal_lm.config import CausalKind
from rankpo.models.reward_model.config import RewardKind
from rankpo.runs.checkpoints import Checkpoint, CheckpointStore
from rankpo.storage.folders import damage
from rankpo.storage.json_files import read_json
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    from rankpo.losses.base import Loss
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind

Say = Callable[[str], None]
NONE: frozenset[str] = frozenset()


def build_model(kind: AnyKind, explicit: Collection[str], say: Say, needs: frozenset[str] = NONE) -> RankingModel:
    """The model on the CPU. explicit: keys of the command line. needs: parts that a loss requires, such as a critic."""
    return kind.build(kind.open_inputs(say, explicit), say, needs=needs)


def trained_kind(chosen: AnyKind, needs: frozenset[str]) -> AnyKind:
    """The kind of the trained model: loss=bradley-terry turns a causal language model into a reward model.

    needs: parts that the loss requires of the model.
    """
    if "reward_head" not in needs or not isinstance(chosen, CausalKind):
        return chosen
    return RewardKind(**{item.name: getattr(chosen, item.name) for item in fields(chosen)})


def plain(kind: AnyKind, folder: str | None) -> AnyKind:
    """The same kind without adapters, from a folder or, for None, from name_or_path."""
    if folder is None:
        return replace(kind, load_from=None, use_peft=False, quantization=None)
    return replace(kind, load_from=folder, random=None, use_peft=False, quantization=None)


@dataclass(frozen=True, kw_only=True)
class ModelOfRun:
    """The settings to rebuild the models of a run.

    kind: the kind of the model, including the head of its loss. seed: the seed of random weights and new heads.
    needs: the requirements of the losses of all datasets. start_key: equal for runs with the same start model.
    """

    folder: Path
    kind: AnyKind
    loss: Loss
    seed: int
    start_key: str
    needs: frozenset[str] = NONE

    @classmethod
    def of(cls, folder: Path) -> ModelOfRun:
        """Reads a run directory. Raises ConfigError if the folder is not a run."""
        if not (folder / "config.json").exists() or not ((folder / "FINAL").is_dir() or CheckpointStore(folder).list()):
            raise ConfigError([f"task.run={folder} is not a run with checkpoints or FINAL; give a run directory"])
        config = read_json(folder / "config.json")
        loss: Loss = build(config["loss"], f"{folder}/config.json: loss")
        chosen: AnyKind = build(config["model"], f"{folder}/config.json: model")
        own: list[Loss] = [
            build(node["loss"], f"{folder}/config.json: objectives.{name}.loss")
            for name, node in config.get("objectives", {}).items()
        ]
        needs = frozenset[str]().union(*(item.needs for item in [loss, *own]))
        # FINAL and exports hold adapters merged into float32 weights, even if training used rounded weights.
        kind = replace(trained_kind(chosen, needs), dtype="float32", quantization=None)
        return cls(
            folder=folder,
            kind=kind,
            loss=loss.fitted(kind.logps),
            seed=int(config["seed"]),
            needs=needs,
            start_key=json.dumps([config["model"], config["seed"], sorted(needs)], sort_keys=True),
        )

    def start(self, say: Say) -> RankingModel:
        """The model before the first update, with the same random weights as in the run."""
        seed_everything(self.seed)
        return build_model(self.kind, (), say, self.needs)

    def final(self, folder: Path, say: Say) -> RankingModel:
        """The model of a saved folder of the run."""
        return build_model(plain(self.kind, str(folder)), (), say, self.needs)


def load_weights(model: RankingModel, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's trained weights into a model of the same run. Raises StorageError if it is damaged."""
    fault = damage(checkpoint.path)
    if fault is not None:
        raise StorageError(f"{checkpoint.path} is damaged ({fault}); remove it")
    missing = model.load_state_dict(load_file(checkpoint.path / "weights.safetensors"), strict=False)
    if missing.unexpected_keys:
        raise StorageError(f"{checkpoint.path} holds weights that the model lacks: {missing.unexpected_keys[:3]}")
