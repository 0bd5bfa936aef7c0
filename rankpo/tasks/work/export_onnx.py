"""The part of task=export for task.format=onnx: the file, its difference from torch, and what it loses in evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.errors import ConfigError
from rankpo.models.onnx import require_packages, run_by_onnx, write_onnx
from rankpo.models.saving import ExportError
from rankpo.models.vectors import GivesVectors
from rankpo.storage.folders import note_files
from rankpo.tasks.evaluators import evaluators_of

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind
    from rankpo.tasks.export import Export

TOLERANCE = 1e-3  # Of float32.
PROBES = ("what do moles eat?", "a", "Moles eat earthworms, which they keep alive in larders below the ground. " * 4)


def check_onnx(kind: AnyKind) -> None:
    """Raises ConfigError for a kind of model that has no such export, and for missing packages."""
    if "vectors" not in kind.gives:
        raise ConfigError([f"task.format=onnx exports models that give vectors, and this one is of kind {kind.kind}"])
    require_packages()


def onnx_row(
    task: Export, experiment: Experiment, model: RankingModel, folder: Path, say: Callable[[str], None]
) -> dict[str, object]:
    """Writes `folder`/onnx; the columns of the table: size, largest difference of an embedding, metrics before and after."""
    assert isinstance(model, GivesVectors)
    model.eval()
    path = write_onnx(model, folder / "onnx", task.quantize)
    expected, before = np.concatenate(list(model.encode(PROBES))), _metrics(task, experiment, model, say)
    with run_by_onnx(model, path):
        found, after = np.concatenate(list(model.encode(PROBES))), _metrics(task, experiment, model, say)
    difference = float(np.abs(found - expected).max())
    if task.quantize is None and difference > TOLERANCE:
        raise ExportError(f"{path}: vectors differ by {difference:.0e} from those of torch, more than {TOLERANCE:.0e}")
    note_files(folder)
    say(f"{path} written; sentence-transformers loads it with SentenceTransformer(FOLDER, backend='onnx')")
    lost = {f"{name} lost": before[name] - after[name] for name in before}
    return {
        "onnx": path.name,
        "MB": path.stat().st_size / 1e6,
        "onnx difference": f"{difference:.0e}",
        **after,
        **lost,
    }


def _metrics(task: Export, experiment: Experiment, model: GivesVectors, say: Callable[[str], None]) -> dict[str, float]:
    """The metrics of `task.metrics` on each of eval_datasets."""
    found: dict[str, float] = {}
    for evaluator in evaluators_of(experiment.model, experiment.loss, experiment, task.metrics, say, top_k=100):
        values: Mapping[str, float] = evaluator.evaluate(model).metrics
        found |= {f"{evaluator.name}/{name}": value for name, value in values.items() if name in task.metrics}
    return found
