"""Baseline: cached metrics of the start model, which all jobs of a sweep on the same data share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash
from accelerate import Accelerator

from rankpo.evaluation.base import Evaluator
from rankpo.models.base import RankingModel
from rankpo.models.reference import fingerprint_weights
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.json_files import read_cache, read_json, write_json

FORMAT_VERSION = 1  # Raise this number with every change that alters the metrics of the same model.

Measure = Callable[[Evaluator, RankingModel], Mapping[str, float]]


def measured(evaluator: Evaluator, model: RankingModel) -> Mapping[str, float]:
    """Evaluates the model with its current weights and returns the metrics."""
    return evaluator.evaluate(model).metrics


class Baseline:
    """Metrics of the start model, read from `cache_dir`/baselines or computed and stored there.

    The cache key covers the model's weights, settings and precision, the texts and tokens of the data, the other
    inputs of the evaluator, and the number and kind of processes, which affect the last digits. Construct the object
    before a strategy shards the weights, and call it on all ranks.
    """

    def __init__(
        self, model: RankingModel, accelerator: Accelerator, cache_dir: Path, say: Callable[[str], None]
    ) -> None:
        launch = (accelerator.distributed_type, accelerator.num_processes, accelerator.mixed_precision)
        self.start = [FORMAT_VERSION, fingerprint_weights(model), repr(model.settings), str(model.device.type), *launch]
        self.folder = cache_dir / "baselines"
        self.say = say

    def __call__(self, evaluator: Evaluator, model: RankingModel) -> Mapping[str, float]:
        """Returns the evaluator's metrics of `model`. The weights of `model` must still be those of the start model."""
        if not evaluator.cached:
            return measured(evaluator, model)
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
