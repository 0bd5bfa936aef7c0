"""The evaluation before the first update, kept: all jobs of a sweep start from the same model on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash
from accelerate import Accelerator

from rankpo.evaluation.base import Evaluator
from rankpo.models.reference import fingerprint_weights
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.json_files import read_cache, read_json, write_json

FORMAT_VERSION = 1  # to be raised by a change that gives the same model other metrics

Measure = Callable[[Evaluator, object], Mapping[str, float]]


def measured(evaluator: Evaluator, model: Any) -> Mapping[str, float]:
    """The evaluator's metrics of the model as it is now."""
    return evaluator.evaluate(model).metrics


class Baseline:
    """Metrics of the start model, from `cache_dir`/baselines or measured and kept there.

    Keyed by weights, settings and precision of the model, by texts and tokens of the data, by what the evaluator
    reads besides, and by the number and kind of processes, which move the last digits. Made before a strategy splits
    the weights over ranks; called on all of them.
    """

    def __init__(self, model: Any, accelerator: Accelerator, cache_dir: Path, say: Callable[[str], None]) -> None:
        launch = (accelerator.distributed_type, accelerator.num_processes, accelerator.mixed_precision)
        self.start = [FORMAT_VERSION, fingerprint_weights(model), repr(model.settings), str(model.device.type), *launch]
        self.folder = cache_dir / "baselines"
        self.say = say

    def __call__(self, evaluator: Evaluator, model: Any) -> Mapping[str, float]:
        """The evaluator's metrics of `model`, which must still be the start model."""
        table = evaluator.table(model.inputs.pieces())
        parts = [*self.start, type(evaluator).__name__, table.folder.name, *evaluator.depends_on()]
        key = xxhash.xxh3_128_hexdigest("|".join(map(repr, parts)).encode())
        path = self.folder / f"{key}.json"
        with must_compute(path, self.say, lambda file: read_cache(file, self.say) is not None) as ours:
            if not ours:
                self.say(f"{evaluator.name}: evaluation of the start model from {path}")
                return read_json(path)
            metrics = dict(measured(evaluator, model))
            if processes.rank() == 0:
                write_json(path, metrics)
            return metrics
