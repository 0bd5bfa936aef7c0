"""The part of task=export for ONNX and OpenVINO: the file, its difference from torch, and what it loses in evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from rankpo.errors import ConfigError
from rankpo.models.exported import onnx, openvino
from rankpo.models.exported.forms import ExportForm, Runner, form_of, plain, run_by
from rankpo.models.saving import ExportError
from rankpo.storage.folders import note_files
from rankpo.tasks.evaluators import evaluators_of

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind
    from rankpo.tasks.export import Export

TOLERANCE = 1e-3  # Of float32.
PACKAGES = {"onnx": onnx.PACKAGES, "openvino": openvino.PACKAGES}

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}

Row = dict[str, object]


def check_format(task: Export, kind: AnyKind) -> None:
    """Raises ConfigError, before weights are loaded, for a kind without such a file and for missing packages."""
    if not kind.gives & {"vectors", "pairs"}:
        raise ConfigError(
            [f"task.format={task.format} exports models with vectors and rerankers, and kind={kind.kind} is neither"]
        )
    for name in PACKAGES[task.format]:
        if find_spec(name) is None:
            raise ConfigError(
                [f"task.format={task.format} needs the package {name}: pip install 'rankpo[{task.format}]'"]
            )
    if task.format == "openvino":
        openvino.check_compression(task.quantize)


def row_of_file(
    task: Export, experiment: Experiment, model: RankingModel, folder: Path, say: Callable[[str], None]
) -> Row:
    """Writes `folder`/FORMAT; the columns of the table: size, largest difference of an output, metrics, their losses."""
    model.eval()
    form = form_of(model)
    path, run = _written(task, model, form, folder)
    expected, before = form.outputs(model), _metrics(task, experiment, model, say)
    with run_by(model, form, run, f"{task.format} {path.name}"):
        found, after = form.outputs(model), _metrics(task, experiment, model, say)
    difference = float(np.abs(found - expected).max())
    if task.quantize is None and difference > TOLERANCE:
        raise ExportError(f"{path}: results differ by {difference:.0e} from those of torch, more than {TOLERANCE:.0e}")
    row: Row = {
        "file": path.name,
        "MB": sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")) / 1e6,
        "file difference": f"{difference:.0e}",
        **after,
        **{f"{name} lost": before[name] - after[name] for name in before},
    }
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(_section(task.format, path, row))
    note_files(folder)
    say(f"{path} written; {_use(task, form, path, folder)}")
    return row


def _use(task: Export, form: ExportForm, path: Path, folder: Path) -> str:
    """How the file is loaded."""
    if not form.read_in(folder):
        return (
            f"{RUNTIMES[task.format]} runs it; {form.reader} of sentence-transformers needs a folder with one label for that: "
            "train it with model.export_one_label=true"
        )
    options = {} if task.quantize is None else {"file_name": f"{task.format}/{path.name}"}
    more = f", model_kwargs={options}" if options else ""
    return f"with optimum, {form.reader}(FOLDER, backend={task.format!r}{more}) of sentence-transformers loads it"


def _written(task: Export, model: RankingModel, form: ExportForm, folder: Path) -> tuple[Path, Runner]:
    """The file and its runner. OpenVINO's is converted from a temporary file of ONNX."""
    exported = form.exported(model)
    if task.format == "onnx":
        with plain(model):
            path = onnx.write_onnx(exported, folder / "onnx", task.quantize)
        return path, onnx.onnx_runner(path)
    with TemporaryDirectory() as temporary:
        with plain(model):
            whole = onnx.write_onnx(exported, Path(temporary), None)
        path = openvino.write_openvino(whole, folder / "openvino", task.quantize)
    return path, openvino.openvino_runner(path)


def _section(name: str, path: Path, row: Mapping[str, object]) -> str:
    """The section of the card about the file."""
    shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items() if key != "file"}
    lines = [f"| {key} | {value} |" for key, value in shown.items()]
    table = "\n".join(["| measured against torch | |", "|---|---|", *lines])
    return f"\n## {name}/{path.name}\n\n{table}\n"


def _metrics(task: Export, experiment: Experiment, model: RankingModel, say: Callable[[str], None]) -> dict[str, float]:
    """The metrics of `task.metrics` on each of eval_datasets."""
    found: dict[str, float] = {}
    for evaluator in evaluators_of(experiment.model, experiment.loss, experiment, task.metrics, say, top_k=100):
        values: Mapping[str, float] = evaluator.evaluate(model).metrics
        found |= {f"{evaluator.name}/{name}": value for name, value in values.items() if name in task.metrics}
    return found
