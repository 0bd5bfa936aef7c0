"""Losses on the vectors of an update, taken on several sizes of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.losses.gist import GISTLoss
from rankpo.losses.graded_margin import GradedMarginLoss
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.labelled_pairs import ContrastivePairsLoss, OnlineContrastiveLoss
from rankpo.losses.reduction import sums, total
from rankpo.losses.scored_pairs import AnglELoss, CoSENTLoss, CosineMSELoss
from rankpo.losses.triplet import TripletLoss
from rankpo.types import Batch, Labels, Sequences, TeacherVectors
from tests.runs import TINY, trainer_of

SIZE, QUERIES, GROUP = 8, 4, 3


def batch(labels: torch.Tensor) -> Batch:
    """Queries 0 to 3 and three candidates each, all texts different."""
    count = QUERIES * (1 + GROUP)
    teacher = normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    rows = torch.arange(QUERIES, count).reshape(QUERIES, GROUP)
    pairs = torch.tensor([[q, int(rows[q, 0])] for q in range(QUERIES)])
    return Batch(
        sequences=Sequences(torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64)),
        queries=torch.arange(QUERIES),
        candidates=rows,
        labels=Labels(labels, torch.ones_like(labels, dtype=torch.bool), torch.ones(QUERIES)),
        ids=tuple(map(str, range(QUERIES))),
        positives=pairs,
        judged=torch.tensor([[q, int(row)] for q in range(QUERIES) for row in rows[q]]),
        grades=labels.flatten(),
        teacher=TeacherVectors(teacher, teacher),
    )


BINARY = torch.tensor([[1.0, 0.0, 0.0]]).repeat(QUERIES, 1)
GRADED = torch.linspace(0, 1, QUERIES * GROUP).reshape(QUERIES, GROUP)
LOSSES: dict[str, tuple[InBatchLoss, torch.Tensor]] = {
    "cosent": (CoSENTLoss(), GRADED),
    "angle": (AnglELoss(), GRADED),
    "cosine_mse": (CosineMSELoss(), GRADED),
    "contrastive_pairs": (ContrastivePairsLoss(), BINARY),
    "online_contrastive": (OnlineContrastiveLoss(), BINARY),
    "triplet": (TripletLoss(), BINARY),
    "gist": (GISTLoss(), BINARY),
    "graded_margin": (GradedMarginLoss(), GRADED),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_value_is_the_weighted_mean_of_the_loss_of_each_size(name):
    """Each size for itself: the loss of vectors that are cut and normalised beforehand."""
    loss, labels = LOSSES[name]
    given = batch(labels)
    vectors = torch.randn(QUERIES * (1 + GROUP), SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(of: InBatchLoss, rows: torch.Tensor) -> torch.Tensor:
        return total(of.in_batch(rows, given), sums(of.in_batch_weights(given)))

    nested = dataclasses.replace(loss, matryoshka_dims=(4, 2), matryoshka_weights=(2.0, 0.5))
    expected = sum(
        weight * value(loss, normalize(vectors[:, :size], dim=1)) for size, weight in ((SIZE, 1.0), (4, 2.0), (2, 0.5))
    )
    assert_close(value(nested, vectors), expected / 3.5, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_sizes_are_checked(name):
    loss, _ = LOSSES[name]
    with pytest.raises(ValueError, match="matryoshka_dims must be distinct integers"):
        dataclasses.replace(loss, matryoshka_dims=(4, 4))


def test_a_run_logs_the_loss_of_each_size(tmp_path):
    keys = (*TINY, "loss=cosent", "loss.matryoshka_dims=[16,8]", "datasets=[toy_graded]", f"cache_dir={tmp_path}")
    trainer = trainer_of(*keys)
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    logged = trainer.running.result(lambda values: values)
    assert {"loss/dim_32", "loss/dim_16", "loss/dim_8"} <= set(logged)
    assert compose(list(keys)).loss.matryoshka is not None
