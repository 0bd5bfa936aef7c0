"""GISTEmbed: sentence-transformers' value and gradient, who stays out, by hand, parts of an update."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import Tensor, float64, nn, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.gist import GISTLoss
from rankpo.models.random_weights import byte_tokenizer
from rankpo.types import Batch, TeacherVectors
from tests.losses.tables import assert_values
from tests.losses.test_contrastive import batch_of
from tests.losses.test_labelled_pairs import embeddings, value

COUNT = 9


def guided(batch: Batch, guide: Tensor) -> Batch:
    return replace(batch, teacher=TeacherVectors(guide, guide))


def triplets(negatives: bool) -> Batch:
    """Query b in row b, its positive in row B + b, its negative in row 2B + b."""
    columns = [[COUNT + number, *([2 * COUNT + number] if negatives else [])] for number in range(COUNT)]
    return batch_of(list(range(COUNT)), columns)


class Given(nn.Module):
    """Stands for a SentenceTransformer whose embeddings are given with the features."""

    max_seq_length = 8

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.tokenizer = byte_tokenizer()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize(("anchors", "positives"), [(True, True), (False, True), (True, False)])
def test_equal_to_sentence_transformers(negatives, strategy, margin, anchors, positives):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    chosen = {"contrast_anchors": anchors, "contrast_positives": positives, "temperature": 0.05}
    peer = losses.GISTEmbedLoss(Given("own"), Given("guide"), margin_strategy=strategy, margin=margin, **chosen)
    rows = (3 if negatives else 2) * COUNT
    vectors, guide = embeddings(rows).requires_grad_(), embeddings(rows, 5, seed=1)
    guide[COUNT : 2 * COUNT, :2] += guide[:COUNT, :2]  # positives are near their queries
    columns = [{"own": own, "guide": its} for own, its in zip(vectors.split(COUNT), guide.split(COUNT), strict=True)]
    expected = peer(columns, None)
    (slope,) = torch.autograd.grad(expected, vectors)
    ours = GISTLoss(margin_strategy=strategy, margin=margin, **chosen)
    batch = guided(triplets(negatives), guide)
    for parts in (1, 4):
        found = value(ours, vectors, batch, parts)
        assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
        assert_close(torch.autograd.grad(found, vectors)[0], slope, rtol=1e-6, atol=1e-7)
    metrics = ours.in_batch(vectors, batch).metrics
    assert 0.05 < float(metrics["scores/false_negatives"].mean()) < 0.95


def unit(*cosines_to_first: float) -> Tensor:
    """Vectors of length 1 in the plane, at these cosines to the first axis."""
    cosines = tensor(cosines_to_first, dtype=float64)
    return torch.stack([cosines, (1 - cosines.square()).sqrt()], 1)


def test_by_hand():
    """One query, positive at cosine .8, own negatives at .6 and .5 of the model; the guide has .7, .9 and .1: the first
    stays out."""
    batch = guided(batch_of([0], [[1, 2, 3]]), unit(1.0, 0.7, 0.9, 0.1))
    loss = GISTLoss(temperature=0.5)
    vectors = unit(1.0, 0.8, 0.6, 0.5)
    assert_values(value(loss, vectors, batch), log(1 + exp((0.5 - 0.8) / 0.5)), atol=1e-12)
    # with a margin of .65 only what the guide has below .05 comes in: nothing
    assert_values(value(GISTLoss(temperature=0.5, margin=0.65), vectors, batch), 0.0, atol=1e-12)
    # below 0 the relative margin still lowers the bar: -.5 - .5·.2 = -.6, and -.55 stays out
    below = guided(batch_of([0], [[1, 2, 3]]), unit(1.0, -0.5, -0.55, -0.65))
    relative = GISTLoss(temperature=0.5, margin=0.2, margin_strategy="relative")
    assert_values(value(relative, vectors, below), log(1 + exp((0.5 - 0.8) / 0.5)), atol=1e-12)


def test_texts_known_to_be_relevant_stay_out_whatever_the_guide_says():
    batch = guided(batch_of([0], [[1, 2, 3]], positives=[[0, 3]]), unit(1.0, 0.7, 0.1, 0.1))
    vectors = unit(1.0, 0.8, 0.6, 0.5)
    assert_values(value(GISTLoss(temperature=0.5), vectors, batch), log(1 + exp((0.6 - 0.8) / 0.5)), atol=1e-12)


def test_queries_that_see_their_own_negatives_alone():
    """The first query's loss is that of an update of its own; the second's is not changed."""
    guide, vectors = embeddings(3 * COUNT, 5, seed=1), embeddings(3 * COUNT)
    loss = GISTLoss(temperature=0.5, margin=0.3)
    both = guided(triplets(True), guide)
    alone = replace(both, own_negatives=torch.arange(COUNT) == 0)
    single = guided(batch_of([0], [[COUNT, 2 * COUNT]]), guide)
    found, usual = loss.in_batch(vectors, alone).losses, loss.in_batch(vectors, both).losses
    assert_close(found[0], loss.in_batch(vectors, single).losses[0])
    assert found[0] != usual[0]
    assert_close(found[1:], usual[1:])


def test_lengths_of_vectors_do_not_matter():
    guide, vectors = embeddings(3 * COUNT, 5, seed=1), embeddings(3 * COUNT)
    loss = GISTLoss(temperature=0.1)
    once = value(loss, vectors, guided(triplets(True), guide))
    scale = torch.rand(3 * COUNT, 1, generator=torch.Generator().manual_seed(5), dtype=float64) + 0.5
    assert_close(value(loss, scale * vectors, guided(triplets(True), 3 * scale * guide)), once)


def test_gradients():
    batch = guided(triplets(True), embeddings(3 * COUNT, 5, seed=1))
    loss = GISTLoss(temperature=0.5)
    assert gradcheck(lambda v: value(loss, v, batch), (embeddings(3 * COUNT).requires_grad_(),))


def test_half_precision_is_read_in_float32():
    batch = guided(triplets(True), embeddings(3 * COUNT, 5, seed=1))
    vectors = embeddings(3 * COUNT, dtype=torch.bfloat16)
    found = value(GISTLoss(), vectors, batch)
    assert found.dtype == torch.float32
    assert_close(found, value(GISTLoss(), vectors.float(), batch))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"margin": -0.1}, "margin must be >= 0, got -0.1"),
        ({"margin_strategy": "percent"}, "margin_strategy must be one of absolute, relative, got 'percent'"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        GISTLoss(**keys)


def test_without_a_guide_is_an_error():
    with pytest.raises(ValueError, match=r"needs the guide's embeddings, Batch\.teacher, got None"):
        GISTLoss().in_batch(embeddings(3 * COUNT), triplets(True))
