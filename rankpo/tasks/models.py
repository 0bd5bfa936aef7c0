"""Models of tasks: that of the config, and those of a run with what its loss added to them."""

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
    """The model on the CPU. explicit: keys of the command line. needs: what a loss needs of it, such as a critic."""
    return kind.build(kind.open_inputs(say, explicit), say, needs=needs)


def trained_kind(chosen: AnyKind, needs: frozenset[str]) -> AnyKind:
    """The kind of the trained model: loss=bradley-terry makes a reward model of a causal language model.

    needs: the loss's.
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
    """The model with which a run was started. kind: with the head of its loss. seed: of random weights and new heads.
    needs: of the losses of all its datasets. start_key: equal for runs that
    begin with the same model."""

    folder: Path
    kind: AnyKind
    loss: Loss
    seed: int
    start_key: str
    needs: frozenset[str] = NONE

    @classmethod
    def of(cls, folder: Path) -> ModelOfRun:
        """Of a run directory. Raises ConfigError where the folder is no run."""
        if not (folder / "config.json").exists() or not ((folder / "FINAL").is_dir() or CheckpointStore(folder).list()):
            raise ConfigError([f"task.run={folder} is no run with checkpoints or FINAL; give a run directory"])
        config = read_json(folder / "config.json")
        loss: Loss = build(config["loss"], f"{folder}/config.json: loss")
        chosen: AnyKind = build(config["model"], f"{folder}/config.json: model")
        own: list[Loss] = [
            build(node["loss"], f"{folder}/config.json: objectives.{name}.loss")
            for name, node in config.get("objectives", {}).items()
        ]
        needs = frozenset[str]().union(*(item.needs for item in [loss, *own]))
        # FINAL and exports hold adapters merged into float32 weights, also where training held those rounded.
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
        """The model as the run began, with the random weights that it drew."""
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
