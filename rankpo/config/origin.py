"""The origin of a training: the content of its datasets, start weights, tokenizer and reference scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from rankpo import __version__
from rankpo.models.fingerprints import of_source
from rankpo.storage.folders import checksum

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment


def origin_of(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Fingerprints for `runs.origin`, computed from files without loading data or weights."""

    model = experiment.model
    found = {
        group: {dataset.name: dataset.fingerprint() for dataset in datasets}
        for group, datasets in (
            ("datasets", experiment.datasets),
            ("eval_datasets", experiment.eval_datasets),
            ("replay_datasets", experiment.replay_datasets),
        )
    }
    found["model"] = {} if model.is_random else of_source(model.source())
    reference = experiment.load_reference_logprobs
    if reference is not None and Path(reference).is_file():
        found["reference"] = {"load_reference_logprobs": checksum(Path(reference))}
    found["versions"] = {"rankpo": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return found
