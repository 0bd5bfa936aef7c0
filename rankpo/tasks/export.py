"""task=export: a run's FINAL or checkpoint as a folder, in a chosen precision, also on the way from its start model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.storage.json_files import read_json
from rankpo.tasks.base import Task
from rankpo.tasks.models import NONE, ModelOfRun, build_model, load_weights, plain
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    from torch import Tensor

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import ModelKind

DTYPES = ("float32", "bfloat16", "float16")
FINAL = "FINAL"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Export(Task):
    """Writes `output`/FINAL, or with several alphas `output`/alpha-A/FINAL, each loaded again and compared.

    run: a run directory; None exports the model of the config. checkpoint: "FINAL" or "step-N". soup: run directories,
    such as seeds of one recipe, whose FINALs' mean is the trained model, in place of run. alphas: weights
    (1 - α)·start + α·trained; 1 is the trained model. start: a folder or hub id; None takes what the run started from,
    and of a soup's runs what all of them did.
    """

    run: str | None = None
    checkpoint: str = FINAL
    dtype: str = "float32"
    alphas: Sequence[float] = (1.0,)
    start: str | None = None
    output: str = "export"
    soup: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas must be numbers in [0, 1], got {list(self.alphas)}")
        if len(set(self.alphas)) < len(self.alphas):
            raise ValueError(f"alphas must be different, got {list(self.alphas)}: each has a folder of its own")
        if self.checkpoint != FINAL and not self.checkpoint.removeprefix("step-").isdigit():
            raise ValueError(f"checkpoint must be FINAL or step-N, got {self.checkpoint!r}")
        if self.run is not None and not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: no such run directory")
        self._check_soup()

    def _check_soup(self) -> None:
        if not self.soup:
            return
        if self.run is not None or self.checkpoint != FINAL:
            raise ValueError(f"soup={list(self.soup)} mixes the FINALs of its runs; leave run and checkpoint out")
        if len(self.soup) < 2 or len({Path(run).resolve() for run in self.soup}) < len(self.soup):
            raise ValueError(f"soup must name two different run directories or more, got {list(self.soup)}")
        for run in self.soup:
            if not (Path(run) / FINAL).is_dir():
                raise ValueError(f"soup: {run} is no run directory with a {FINAL}")

    def __call__(self, experiment: Experiment) -> list[dict[str, object]]:
        """The table's rows, one for each folder."""
        from rankpo.runs import processes

        targets = {alpha: self._target(alpha) for alpha in self.alphas}
        self._check_targets(experiment, list(targets.values()))
        logger = self.open(experiment).logger
        rows = self._export(experiment, targets, logger.say) if logger.main else []
        processes.barrier()
        logger.table(rows)
        return rows

    def _target(self, alpha: float) -> Path:
        return Path(self.output) / (FINAL if len(self.alphas) == 1 else f"alpha-{alpha:g}/{FINAL}")

    def _check_targets(self, experiment: Experiment, targets: Sequence[Path]) -> None:
        read = [Path(name).resolve() for name in (self.start, experiment.model.load_from) if name is not None]
        read += [(Path(run) / FINAL).resolve() for run in (*self.soup, *filter(None, [self.run]))]
        for target in targets:
            if target.resolve() in read:
                raise ConfigError([f"task.output={self.output} would write {target}, which is read; choose another"])
            if target.exists() and not experiment.overwrite:
                raise ConfigError([f"{target} is there already; set overwrite=true or another exp_name"])

    def _export(self, experiment: Experiment, targets: Mapping[float, Path], say: Say) -> list[dict[str, object]]:
        from rankpo.models.interpolation import interpolate, shared_names

        first = self.soup[0] if self.soup else self.run
        run = None if first is None else ModelOfRun.of(Path(first))
        config = experiment.model if run is None else run.kind
        needs = NONE if run is None else run.loss.needs
        model = self._mixed(say) if self.soup else self._trained(experiment, run, say)
        description = self._description(experiment, config)
        trained = _copied(model)
        start: dict[str, Tensor] = {}
        if any(alpha < 1 for alpha in self.alphas):
            start = _copied(self._start(config, run, say))
            shared = shared_names(start, trained)
            say(f"{len(shared.mixed)} weights are interpolated, {len(shared.only)} stay as only one model has them")
        rows = []
        for alpha, target in targets.items():
            model.load_state_dict(interpolate(start, trained, alpha) if alpha < 1 else trained)
            whole = alpha == 1 and not self.soup
            difference = self._write(model, config, target, _described(description, alpha, self.dtype, whole))
            check_round_trip(model, config, target, needs)
            rows.append({"folder": str(target), "alpha": alpha, "dtype": self.dtype, "difference": f"{difference:.0e}"})
        return rows

    def _trained(self, experiment: Experiment, run: ModelOfRun | None, say: Say) -> RankingModel:
        """The model on the CPU, adapters merged."""
        from rankpo.runs.checkpoints import CheckpointStore

        if run is None:
            if experiment.model.load_from is None and experiment.model.name_or_path is None:
                raise ConfigError(["task.run or model.load_from must say what to export"])
            model: Any = build_model(experiment.model, experiment.explicit, say)
            return model
        folder = Path(str(self.run))
        if self.checkpoint == FINAL:
            if not (folder / FINAL).is_dir():
                raise ConfigError([f"task.run={folder} has no {FINAL}; set task.checkpoint=step-N"])
            model = run.final(folder / FINAL, say)
            return model
        found = {item.path.name: item for item in CheckpointStore(folder).list()}
        if self.checkpoint not in found:
            known = ", ".join([*found, *([FINAL] if (folder / FINAL).is_dir() else [])])
            raise ConfigError([f"task.checkpoint={self.checkpoint}: {folder} has {known}"])
        model = run.start(say)
        load_weights(model, found[self.checkpoint])
        if model.has_adapters:
            model.backbone = model.backbone.merge_and_unload()
        return model

    def _mixed(self, say: Say) -> RankingModel:
        """A model with the mean of the weights of the soup's runs, and the settings of the first."""
        from rankpo.models.interpolation import mean_weights

        runs = [ModelOfRun.of(Path(run)) for run in self.soup]
        starts = {run.kind.load_from or run.kind.name_or_path for run in runs}
        if len(starts) > 1 and self.start is None and any(alpha < 1 for alpha in self.alphas):
            raise ConfigError([f"task.soup: the runs started from {', '.join(map(str, starts))}; set task.start"])
        first: Any = runs[0].final(Path(self.soup[0]) / FINAL, say)

        def states() -> Iterator[Mapping[str, Tensor]]:
            yield _copied(first)
            for folder, run in zip(self.soup[1:], runs[1:], strict=True):
                model = run.final(Path(folder) / FINAL, say)
                if model.settings != first.settings:
                    raise ConfigError(
                        [f"task.soup: {folder} and {self.soup[0]} read texts in two ways: {_differing(model, first)}"]
                    )
                yield model.state_dict()

        first.load_state_dict(mean_weights(states()))
        say(f"the mean of {len(self.soup)} models")
        mixed: RankingModel = first
        return mixed

    def _start(self, config: ModelKind, run: ModelOfRun | None, say: Say) -> RankingModel:
        """What the run started from, or `start`. Raises ConfigError where neither can be known."""
        if self.start is not None:
            if Path(self.start).is_dir():
                started: Any = build_model(plain(config, self.start), (), say)
            else:
                started = build_model(replace(plain(config, None), name_or_path=self.start), (), say)
            return started
        if run is None:
            raise ConfigError(["task.alphas need task.run, or task.start=<the model to interpolate with>"])
        if config.load_from is None and config.name_or_path is None:
            name = f"task.run={self.run}" if self.run else f"task.soup: {self.soup[0]}"
            raise ConfigError([f"{name} started from random weights; set task.start to interpolate"])
        seed_everything(run.seed)  # a new head is the one that the run began with
        started = build_model(plain(config, config.load_from), (), say)
        return started

    def _description(self, experiment: Experiment, config: Any) -> dict[str, object]:
        """What rankpo.json and the card say: the run's own words where it has a FINAL."""
        run = self.soup[0] if self.soup else self.run
        folder = Path(run) / FINAL if run else Path(experiment.model.load_from or "")
        record = folder / "rankpo.json"
        known = read_json(record) if record.exists() else {}
        kept = {name: value for name, value in known.items() if name not in ("kind", "format", "settings")}
        base = config.name_or_path or (None if config.load_from is None else Path(config.load_from).name)
        exported: dict[str, object] = {"checkpoint": self.checkpoint}
        exported["start"] = None if self.start is None else Path(self.start).name
        if self.soup:
            exported["soup"] = [Path(run).name for run in self.soup]
        return {"exp_name": experiment.exp_name, "base_model": base, **kept, "export": exported}

    def _write(self, model: Any, config: Any, target: Path, description: Mapping[str, object]) -> float:
        """Writes and loads again. Returns the largest difference of an output that the model's own export found."""
        from rankpo.models.interpolation import DTYPES as TORCH_DTYPES
        from rankpo.models.interpolation import cast_folder, round_weights

        if self.dtype == "float32":
            difference = config.save(target, model, description)
        else:
            round_weights(model, TORCH_DTYPES[self.dtype])
            wide = target.with_name(f"{target.name}.float32")
            try:
                difference = config.save(wide, model, description)
                cast_folder(wide, target, self.dtype)
            finally:
                shutil.rmtree(wide, ignore_errors=True)
        return difference


def ignored(line: str) -> None:
    """Ignores progress lines: this is a second build."""


def check_round_trip(model: RankingModel, config: Any, folder: Path, needs: frozenset[str] = NONE) -> None:
    """Raises InterpolationError unless the folder, loaded as a model, has exactly the weights of `model`."""
    import torch

    from rankpo.models.interpolation import InterpolationError

    loaded = build_model(plain(config, str(folder)), (), ignored, needs).saved_state()
    for name, tensor in model.saved_state().items():
        if name not in loaded or not torch.equal(loaded[name], tensor.cpu()):
            raise InterpolationError(f"{folder}: loaded again, {name} is another one than was written")


def _copied(model: RankingModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _differing(model: RankingModel, first: RankingModel) -> str:
    """The settings that two models do not share, by name."""
    pairs = [
        (item.name, getattr(model.settings, item.name), getattr(first.settings, item.name))
        for item in fields(model.settings)
    ]
    return ", ".join(f"{name} {own!r} and {other!r}" for name, own, other in pairs if own != other)


def _described(description: Mapping[str, Any], alpha: float, dtype: str, whole: bool) -> dict[str, object]:
    """With α, and without metrics that other weights have. whole: whether the weights are the run's own."""
    kept = {name: v for name, v in description.items() if whole or not name.startswith("metrics_")}
    return {**kept, "export": {**description["export"], "alpha": alpha, "dtype": dtype}}
