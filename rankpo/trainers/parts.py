"""What a trainer is handed: everything that exists before the first update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from rankpo.data.loaders.ranking import DataLoader
from rankpo.evaluation.base import Evaluator
from rankpo.losses.base import Loss
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.reference import Reference
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.runs.logger import MetricsLogger
from rankpo.trainers.baseline import Measure
from rankpo.trainers.schedules import Schedule
from rankpo.trainers.teacher import TeacherEmbeddings


@dataclass(kw_only=True)
class Parts:
    """What a trainer works with, put together by tasks/train.py.

    save_final: writes FINAL from the model, or from complete weights where they are not None; called on every rank.
    baseline: measures the model that the run starts from, or knows it from another run; None measures. stored: [slots]
    reference scores, or None. teacher: embeddings of the data by another model, or None. replay: a second loader whose
    groups accompany every update, or None.
    """

    accelerator: Accelerator
    model: EmbeddingModel
    loss: Loss
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    evaluators: Sequence[Evaluator]
    checkpoints: CheckpointStore
    logger: MetricsLogger
    save_final: Callable[[EmbeddingModel, Mapping[str, Any], Mapping[str, Tensor] | None], None]
    baseline: Measure | None = None
    reference: Reference | None = None
    stored: np.ndarray | None = None
    teacher: TeacherEmbeddings | None = None
    replay: DataLoader | None = None
