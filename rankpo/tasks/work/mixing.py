"""Models for interpolation: the mean of several runs, and the start model of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.models.interpolation import mean_weights
from rankpo.tasks.export import FINAL
from rankpo.tasks.models import ModelOfRun, build_model, plain
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    from torch import Tensor

    from rankpo.models.base import RankingModel
    from rankpo.models.kind import ModelKind

Say = Callable[[str], None]


def copied(model: RankingModel) -> dict[str, Tensor]:
    """A copy of the weights by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def check_one_start(folders: Sequence[str], start: str | None, key: str) -> None:
    """Raises ConfigError if the runs started from different models, unless `start` is set. key: names the folders."""
    kinds = [ModelOfRun.of(Path(folder)).kind for folder in folders]
    starts = {kind.load_from or kind.name_or_path for kind in kinds}
    if len(starts) > 1 and start is None:
        raise ConfigError([f"{key}: the runs started from {', '.join(map(str, starts))}; set task.start"])


def mean_model(folders: Sequence[str], key: str, say: Say) -> RankingModel:
    """A model with the mean of the weights of several runs, and the settings of the first. key: names the folders."""
    runs = [ModelOfRun.of(Path(folder)) for folder in folders]
    first = runs[0].final(Path(folders[0]) / FINAL, say)

    def states() -> Iterator[Mapping[str, Tensor]]:
        yield copied(first)
        for folder, run in zip(folders[1:], runs[1:], strict=True):
            model = run.final(Path(folder) / FINAL, say)
            if model.settings != first.settings:
                raise ConfigError(
                    [f"{key}: {folder} and {folders[0]} differ in their input settings: {_differing(model, first)}"]
                )
            yield model.state_dict()

    first.load_state_dict(mean_weights(states()))
    say(f"the mean of {len(folders)} models")
    return first


def start_model(start: str | None, config: ModelKind, run: ModelOfRun | None, source: str, say: Say) -> RankingModel:
    """The model in the folder or hub id `start`, or for None the start model of the run.

    source: the name of the trained model in messages. Raises ConfigError if the start model is unknown.
    """
    if start is not None:
        is_folder = Path(start).is_dir()
        chosen = plain(config, start) if is_folder else replace(plain(config, None), name_or_path=start)
        return build_model(chosen, (), say)
    if run is None:
        raise ConfigError(["task.alphas need task.run, or task.start=<the model to interpolate with>"])
    if config.load_from is None and config.name_or_path is None:
        raise ConfigError([f"{source} started from random weights; set task.start to interpolate"])
    seed_everything(run.seed)  # A new head gets the same random weights as at the start of the run.
    return build_model(plain(config, config.load_from), (), say)


def _differing(model: RankingModel, first: RankingModel) -> str:
    """The settings that differ between two models, with their values."""
    pairs = [
        (item.name, getattr(model.settings, item.name), getattr(first.settings, item.name))
        for item in fields(model.settings)
    ]
    return ", ".join(f"{name} {own!r} and {other!r}" for name, own, other in pairs if own != other)
