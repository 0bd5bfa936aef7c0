"""Losses on labelled pairs of texts: sentence-transformers' values and gradients, by hand, parts of an update, edges."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch
from torch import Tensor, float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.labelled_pairs import ContrastivePairsLoss, OnlineContrastiveLoss
from rankpo.losses.pairs_of_update import PairwiseInBatchLoss
from rankpo.losses.reduction import sums, total
from rankpo.losses.scored_pairs import AnglELoss, CoSENTLoss, CosineMSELoss
from rankpo.losses.triplet import TripletLoss
from rankpo.types import Batch
from tests.losses.tables import assert_values
from tests.losses.test_contrastive import batch_of

SIZE = 12


def pair_batch(labels: Tensor) -> Batch:
    """Query b in row b, its only candidate in row B + b."""
    count = len(labels)
    batch = batch_of(list(range(count)), [[count + number] for number in range(count)])
    return replace(batch, labels=replace(batch.labels, relevance=labels[:, None]))


def embeddings(rows: int, dim: int = 8, seed: int = 0, dtype: torch.dtype = float64) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value(loss, vectors: Tensor, batch: Batch, parts: int = 1) -> Tensor:
    """The update's value as the trainer takes it, over disjoint parts of its queries."""
    weights = sums(loss.in_batch_weights(batch))
    shares = torch.arange(len(batch)).tensor_split(parts)
    return torch.stack([total(loss.in_batch(vectors, batch, share), weights) for share in shares]).sum()


def graded() -> Tensor:
    return torch.randint(0, 5, (SIZE,), generator=torch.Generator().manual_seed(3)).double() / 5


def binary() -> Tensor:
    return (torch.rand(SIZE, generator=torch.Generator().manual_seed(4)) < 0.5).double()


def theirs(name: str, **keys):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    return getattr(losses, name)(model=None, **keys)


def siamese(kind: str):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    return getattr(losses.SiameseDistanceMetric, {"cosine": "COSINE_DISTANCE"}.get(kind, kind.upper()))


PEERS = {
    "cosent": (CoSENTLoss(), "CoSENTLoss", {}, graded),
    "cosent, scale 5": (CoSENTLoss(temperature=0.2), "CoSENTLoss", {"scale": 5.0}, graded),
    "angle": (AnglELoss(), "AnglELoss", {}, graded),
    "cosine_mse": (CosineMSELoss(), "CosineSimilarityLoss", {}, graded),
    **{
        f"contrastive pairs, {kind}": (
            ContrastivePairsLoss(distance=kind, margin=2.0),
            "ContrastiveLoss",
            {"margin": 2.0, "distance_metric": kind},
            binary,
        )
        for kind in ("cosine", "euclidean", "manhattan")
    },
    "contrastive pairs, soft labels": (ContrastivePairsLoss(), "ContrastiveLoss", {}, graded),
    "online": (OnlineContrastiveLoss(), "OnlineContrastiveLoss", {}, binary),
    "online, euclidean": (
        OnlineContrastiveLoss(distance="euclidean", margin=4.0),
        "OnlineContrastiveLoss",
        {"distance_metric": "euclidean", "margin": 4.0},
        binary,
    ),
    "online, alike alone": (OnlineContrastiveLoss(), "OnlineContrastiveLoss", {}, lambda: torch.ones(SIZE).double()),
    "online, unlike alone": (
        OnlineContrastiveLoss(margin=2.0),
        "OnlineContrastiveLoss",
        {"margin": 2.0},
        lambda: torch.zeros(SIZE).double(),
    ),
}


@pytest.mark.parametrize("dim", [8, 7])
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore:ContrastiveLoss expects binary labels")
def test_equal_to_sentence_transformers(name, dim):
    """Value and gradient at the embeddings, of one part and of three."""
    ours, peer, keys, make = PEERS[name]
    if "distance_metric" in keys:
        keys = {**keys, "distance_metric": siamese(keys["distance_metric"])}
    labels, vectors = make(), embeddings(2 * SIZE, dim).requires_grad_()
    expected = theirs(peer, **keys).compute_loss_from_embeddings([vectors[:SIZE], vectors[SIZE:]], labels)
    (slope,) = torch.autograd.grad(expected, vectors)
    for parts in (1, 3):
        found = value(ours, vectors, pair_batch(labels), parts)
        assert expected > 0
        assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
        # torch's pairwise_distance, which the peer takes for the Euclidean one, adds 1e-6 to every component
        assert_close(torch.autograd.grad(found, vectors)[0], slope, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("kind", ["cosine", "euclidean", "manhattan"])
def test_triplets_equal_sentence_transformers(kind):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    peer = theirs(
        "TripletLoss", distance_metric=getattr(losses.TripletDistanceMetric, kind.upper()), triplet_margin=1.5
    )
    vectors = embeddings(3 * SIZE).requires_grad_()
    rows = [[SIZE + number, 2 * SIZE + number] for number in range(SIZE)]
    batch = batch_of(list(range(SIZE)), rows)
    expected = peer.compute_loss_from_embeddings([vectors[:SIZE], vectors[SIZE : 2 * SIZE], vectors[2 * SIZE :]], None)
    found = value(TripletLoss(margin=1.5, distance=kind), vectors, batch, 3)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    slopes = [torch.autograd.grad(result, vectors)[0] for result in (found, expected)]
    assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-6)


# by hand: cosines 1, 0 and -1 of pairs (e1, e1), (e1, e2), (e1, -e1)
AXES = tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=float64)


def test_cosent_by_hand():
    """Labels 0, 1, 2 for cosines 1, 0, -1, τ = 1: gaps 1, 2 and 1 of wrongly ordered pairs: log(1 + 2e + e²)."""
    loss = CoSENTLoss(temperature=1.0)
    wrong = value(loss, AXES, pair_batch(tensor([0.0, 1.0, 2.0])))
    assert_values(wrong, log(1 + 2 * exp(1) + exp(2)), atol=1e-12)
    right = value(loss, AXES, pair_batch(tensor([2.0, 1.0, 0.0])))
    assert_values(right, log(1 + 2 * exp(-1) + exp(-2)), atol=1e-12)
    assert_values(value(loss, AXES, pair_batch(tensor([1.0, 1.0, 1.0]))), 0.0)


def test_angle_by_hand():
    """(1, 0) with (0, 1): cosine 0, sine 0·0 - 1·1 = -1: 1. (1, 0) with (-1, 0): abs(-1 + 0) = 1."""
    loss = AnglELoss(temperature=1.0)
    assert_values(loss.similarity(AXES[:3], AXES[3:]), 1.0, 1.0, 1.0)
    slanted = tensor([[sqrt(0.5), sqrt(0.5)]], dtype=float64)
    assert_values(loss.similarity(slanted, AXES[:1]), sqrt(2), atol=1e-12)


def test_squared_error_by_hand():
    """(1 - .5)², (0 - 1)², (-1 - 0)²: 2.25/3."""
    assert_values(value(CosineMSELoss(), AXES, pair_batch(tensor([0.5, 1.0, 0.0]))), 0.75)


def test_contrastive_pairs_by_hand():
    """Distances 0, 1, 2, margin 1.5: unlike ½·1.5², alike ½·1², unlike 0, over three."""
    loss = ContrastivePairsLoss(margin=1.5)
    assert_values(value(loss, AXES, pair_batch(tensor([0.0, 1.0, 0.0]))), (1.125 + 0.5) / 3)


def test_online_by_hand():
    """Distances 0, 1, 2 of an unlike, an alike, an unlike pair: the alike one is farther than 0: 1². The first unlike
    one is nearer than 1: 1.5². The last is not."""
    labels = pair_batch(tensor([0.0, 1.0, 0.0]))
    assert_values(value(OnlineContrastiveLoss(margin=1.5), AXES, labels), 3.25)
    assert_values(value(OnlineContrastiveLoss(margin=1.5, reduction="mean"), AXES, labels), 3.25 / 3)


def test_triplets_by_hand():
    """Query e1, positive at 1, own negatives at 2 and 0, margin .5: 0 and 1.5. In batch, also the other query's."""
    vectors = tensor([[1.0, 0], [0, 1.0], [0, 1.0], [-1.0, 0], [2.0, 0], [0, 3.0], [0, -1.0]], dtype=float64)
    batch = batch_of([0, 1], [[2, 3, 4], [5, 6, 6]], mask=[[True] * 3, [True, True, False]])
    assert_values(value(TripletLoss(), vectors, batch), (0 + 1.5 + 0) / 3)
    # first query, others' texts at 1 and 1: .5 and .5; second, positive at 0, others at 0, 1, 1: .5, 0, 0
    in_batch = TripletLoss(negatives="in_batch")
    assert_values(value(in_batch, vectors, batch), (1.5 + 0.5 + 0.5 + 0.5) / 8)
    assert_values(value(in_batch, vectors, batch, 2), 3 / 8)
    # the first query sees its own two alone: 1.5; five triplets less two
    alone = replace(batch, own_negatives=tensor([True, False]))
    assert_values(value(in_batch, vectors, alone, 2), (1.5 + 0.5) / 6)


def test_several_candidates_of_a_query_are_so_many_pairs():
    """Pairs grouped by query give what the same pairs give one by one."""
    vectors = embeddings(5)
    labels = tensor([[0.1, 0.9], [0.4, 0.0]])
    grouped = batch_of([0, 1], [[2, 3], [4, 0]], mask=[[True, True], [True, False]])
    grouped = replace(grouped, labels=replace(grouped.labels, relevance=labels))
    single = batch_of([0, 0, 1], [[2], [3], [4]])
    single = replace(single, labels=replace(single.labels, relevance=tensor([[0.1], [0.9], [0.4]])))
    for loss in (CoSENTLoss(), AnglELoss(), CosineMSELoss(), ContrastivePairsLoss()):
        for parts in (1, 2):
            assert_close(value(loss, vectors, grouped, parts), value(loss, vectors, single))


EVERY: list[PairwiseInBatchLoss] = [CoSENTLoss(), AnglELoss(), CosineMSELoss(), ContrastivePairsLoss(margin=2.0)]


@pytest.mark.parametrize("loss", [*EVERY, OnlineContrastiveLoss(margin=2.0)])
def test_gradients(loss):
    batch = pair_batch(binary())
    assert gradcheck(lambda v: value(loss, v, batch), (embeddings(2 * SIZE).requires_grad_(),))


@pytest.mark.parametrize("kind", ["cosine", "euclidean", "manhattan"])
def test_equal_texts_have_finite_gradients(kind):
    """A Euclidean distance of 0 has no derivative: none is taken."""
    vectors = AXES.clone().requires_grad_()
    loss = ContrastivePairsLoss(distance=kind, margin=1.5)
    value(loss, vectors, pair_batch(tensor([1.0, 1.0, 0.0]))).backward()
    triplets = TripletLoss(distance=kind, margin=5.0)
    value(triplets, vectors, batch_of([0, 1], [[3, 4], [4, 5]])).backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all() and vectors.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_read_in_float32(dtype):
    vectors = embeddings(2 * SIZE).to(dtype)
    for loss in (*EVERY, OnlineContrastiveLoss(), TripletLoss()):
        batch = pair_batch(binary()) if isinstance(loss, PairwiseInBatchLoss) else batch_of([0, 1], [[2, 3], [4, 5]])
        found = value(loss, vectors, batch)
        assert found.dtype == torch.float32
        assert_close(found, value(loss, vectors.float(), batch))


@pytest.mark.parametrize(
    ("loss", "label", "message"),
    [
        (CosineMSELoss(), 1.5, r"loss=cosine_mse needs labels in \[-1, 1\], got 1.5; set datasets"),
        (ContrastivePairsLoss(), 3.0, r"loss=contrastive_pairs needs labels in \[0, 1\], got 3"),
        (OnlineContrastiveLoss(), 0.5, "loss=online_contrastive needs labels 0 and 1, got 0.5"),
    ],
)
def test_labels_that_a_formula_does_not_allow_are_refused(loss, label, message):
    with pytest.raises(ValueError, match=message):
        loss.in_batch_weights(pair_batch(tensor([0.0, label])))
