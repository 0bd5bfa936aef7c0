"""The work of task=export: a run's FINAL or checkpoint as a folder, or its interpolation with the start model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rankpo.errors import ConfigError
from rankpo.models.interpolation import DTYPES as TORCH_DTYPES
from rankpo.models.interpolation import (
    InterpolationError,
    cast_folder,
    interpolate,
    round_weights,
    shared_names,
)
from rankpo.models.load import ignore
from rankpo.runs import processes
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.json_files import read_json
from rankpo.tasks.export import FINAL
from rankpo.tasks.models import NONE, ModelOfRun, build_model, load_weights, plain
from rankpo.tasks.work.export_file import check_format, row_of_file
from rankpo.tasks.work.export_part import kind_of_part, model_of_part
from rankpo.tasks.work.mixing import check_one_start, copied, mean_model, start_model

if TYPE_CHECKING:
    from torch import Tensor

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind
    from rankpo.tasks.export import Export

Say = Callable[[str], None]


def run(task: Export, experiment: Experiment) -> list[dict[str, object]]:
    """The table's rows, one for each folder."""
    targets = {alpha: _target(task, alpha) for alpha in task.alphas}
    _check_targets(task, experiment, list(targets.values()))
    logger = task.open(experiment).logger
    rows = _export(task, experiment, targets, logger.say) if logger.main else []
    processes.barrier()
    logger.table(rows)
    return rows


def _target(task: Export, alpha: float) -> Path:
    return Path(task.output) / (FINAL if len(task.alphas) == 1 else f"alpha-{alpha:g}/{FINAL}")


def _check_targets(task: Export, experiment: Experiment, targets: Sequence[Path]) -> None:
    read = [Path(name).resolve() for name in (task.start, experiment.model.load_from) if name is not None]
    read += [(Path(run) / FINAL).resolve() for run in (*task.soup, *filter(None, [task.run]))]
    for target in targets:
        if target.resolve() in read:
            raise ConfigError(
                [f"task.output={task.output} would overwrite {target}, an input of the task; choose another"]
            )
        if target.exists() and not experiment.overwrite:
            raise ConfigError([f"{target} already exists; set overwrite=true or another exp_name"])


def _export(task: Export, experiment: Experiment, targets: Mapping[float, Path], say: Say) -> list[dict[str, object]]:
    first = task.soup[0] if task.soup else task.run
    run = None if first is None else ModelOfRun.of(Path(first))
    whole = experiment.model if run is None else run.kind
    config = whole if task.part is None else kind_of_part(task.part, whole)
    if task.format != "folder":
        check_format(task, config)
    needs = NONE if run is None else run.loss.needs
    model = _mean(task, say) if task.soup else _trained(task, experiment, run, say)
    description = _description(task, experiment, whole)
    measured = replace(experiment, model=config, loss=experiment.loss if run is None else run.loss)
    trained = copied(model)
    start: dict[str, Tensor] = {}
    if any(alpha < 1 for alpha in task.alphas):
        start = copied(start_model(task.start, whole, run, _source(task), say))
        shared = shared_names(start, trained)
        say(
            f"{len(shared.mixed)} weights are interpolated; {len(shared.only)} are in one model only and stay unchanged"
        )
    rows = []
    for alpha, target in targets.items():
        model.load_state_dict(interpolate(start, trained, alpha) if alpha < 1 else trained)
        exported = model if task.part is None else model_of_part(task.part, model, say)
        difference = _write(task, exported, config, target, _described(task, description, alpha))
        check_round_trip(exported, config, target, needs)
        row = {"folder": str(target), "alpha": alpha, "dtype": task.dtype, "difference": f"{difference:.0e}"}
        of_file = row_of_file(task, measured, exported, target, say) if task.format != "folder" else {}
        rows.append({**row, **of_file})
    return rows


def _mean(task: Export, say: Say) -> RankingModel:
    """The mean of the models of the soup."""
    if any(alpha < 1 for alpha in task.alphas):
        check_one_start(task.soup, task.start, "task.soup")
    return mean_model(task.soup, "task.soup", say)


def _trained(task: Export, experiment: Experiment, run: ModelOfRun | None, say: Say) -> RankingModel:
    """The model on the CPU, adapters merged."""
    if run is None:
        if experiment.model.load_from is None and experiment.model.name_or_path is None:
            raise ConfigError(["task=export needs task.run or model.load_from, the model to export"])
        return build_model(experiment.model, experiment.explicit, say)
    folder = Path(str(task.run))
    if task.checkpoint == FINAL:
        if not (folder / FINAL).is_dir():
            raise ConfigError([f"task.run={folder} has no {FINAL}; set task.checkpoint=step-N"])
        return run.final(folder / FINAL, say)
    found = {item.path.name: item for item in CheckpointStore(folder).list()}
    if task.checkpoint not in found:
        known = ", ".join([*found, *([FINAL] if (folder / FINAL).is_dir() else [])])
        raise ConfigError([f"task.checkpoint={task.checkpoint}: {folder} has {known}"])
    model = run.start(say)
    load_weights(model, found[task.checkpoint])
    model.merge_adapters()
    return model


def _source(task: Export) -> str:
    """The name of the trained model in messages."""
    return f"task.soup: {task.soup[0]}" if task.soup else f"task.run={task.run}"


def _description(task: Export, experiment: Experiment, config: AnyKind) -> dict[str, object]:
    """The description for rankpo.json and the card; that of the run's FINAL if there is one."""
    run = task.soup[0] if task.soup else task.run
    folder = Path(run) / FINAL if run else Path(experiment.model.load_from or "")
    record = folder / "rankpo.json"
    known = read_json(record) if record.exists() else {}
    kept = {name: value for name, value in known.items() if name not in ("kind", "format", "settings")}
    base = config.name_or_path or (None if config.load_from is None else Path(config.load_from).name)
    return {"exp_name": experiment.exp_name, "base_model": base, **kept}


def _write(
    task: Export, model: RankingModel, config: AnyKind, target: Path, description: Mapping[str, object]
) -> float:
    """Writes a folder and loads it again. Returns the largest difference between outputs before and after."""
    if task.dtype == "float32":
        difference = config.save(target, model, description)
    else:
        round_weights(model, TORCH_DTYPES[task.dtype])
        wide = target.with_name(f"{target.name}.float32")
        try:
            difference = config.save(wide, model, description)
            cast_folder(wide, target, task.dtype)
        finally:
            shutil.rmtree(wide, ignore_errors=True)
    return difference


def check_round_trip(model: RankingModel, config: AnyKind, folder: Path, needs: frozenset[str] = NONE) -> None:
    """Raises InterpolationError unless the folder, loaded as a model, has exactly the weights of `model`."""
    loaded = build_model(plain(config, str(folder)), (), ignore, needs).saved_state()
    for name, tensor in model.saved_state().items():
        if name not in loaded or not torch.equal(loaded[name], tensor.cpu()):
            raise InterpolationError(f"{folder}: after loading, {name} differs from the weight that was written")


def _described(task: Export, description: Mapping[str, object], alpha: float) -> dict[str, object]:
    """Adds the keys of the export to the description, and removes the run's metrics if the weights are mixed."""
    whole = alpha == 1 and not task.soup
    kept = {name: value for name, value in description.items() if whole or not name.startswith("metrics_")}
    made: dict[str, object] = {"checkpoint": task.checkpoint}
    if task.part is not None:
        made["part"] = task.part
    made["start"] = None if task.start is None else Path(task.start).name
    if task.soup:
        made["soup"] = [Path(run).name for run in task.soup]
    return {**kept, "export": {**made, "alpha": alpha, "dtype": task.dtype}}
