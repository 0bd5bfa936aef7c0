"""Distillation of embeddings: sentence-transformers' values, similarities and their order by loops, parts, gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, float64
from torch.autograd import gradcheck
from torch.nn.functional import normalize
from torch.testing import assert_close

from rankpo.losses.vector_distillation import VectorDistillLoss, relative_similarity
from rankpo.types import Batch, TeacherVectors
from tests.losses.tables import assert_values
from tests.losses.test_contrastive import batch_of
from tests.losses.test_labelled_pairs import embeddings, value

COUNT = 6


def taught(teacher: Tensor) -> Batch:
    """Query b in row b, its candidate in row B + b."""
    batch = batch_of(list(range(COUNT)), [[COUNT + number] for number in range(COUNT)])
    return replace(batch, teacher=TeacherVectors(teacher, teacher))


@pytest.mark.parametrize("distance", ["cosine", "mse", "l2"])
def test_equal_to_sentence_transformers(distance):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors, teacher = embeddings(2 * COUNT).requires_grad_(), embeddings(2 * COUNT, seed=1)
    peer = losses.EmbedDistillLoss(None, distance_metric=distance)
    expected = peer.compute_loss_from_embeddings(list(vectors.split(COUNT)), list(teacher.split(COUNT)))
    (slope,) = torch.autograd.grad(expected, vectors)
    for parts in (1, 3):
        found = value(VectorDistillLoss(distance=distance), vectors, taught(teacher), parts)
        assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert_close(torch.autograd.grad(found, vectors)[0], slope, rtol=1e-6, atol=1e-7)


def naive(vectors: Tensor, teacher: Tensor, dims: tuple[int, ...], margin: float) -> tuple[float, float]:
    """Similarity and triplet terms of RAG-Retrieval's description, by loops."""
    wanted = normalize(teacher, dim=1) @ normalize(teacher, dim=1).T
    similarity, triplet = 0.0, 0.0
    for dim in dims:
        unit = normalize(vectors[:, :dim], dim=1)
        found = unit @ unit.T
        similarity += float(((found - wanted) ** 2).mean()) / len(dims)
        pairs = list(combinations(range(len(vectors)), 2))
        terms = []
        for (i, j), (k, m) in combinations(pairs, 2):
            sign = 1.0 if wanted[k, m] < wanted[i, j] else -1.0
            terms.append(max(0.0, sign * float(found[k, m] - found[i, j]) + margin))
        triplet += sum(terms) / len(terms) / len(dims)
    return similarity, triplet


@pytest.mark.parametrize("dims", [None, (8, 4)])
@pytest.mark.parametrize("parts", [1, 3])
def test_similarities_and_their_order(dims, parts):
    vectors, teacher = embeddings(2 * COUNT), embeddings(2 * COUNT, 5, seed=1)  # of another size
    similarity, triplet = naive(vectors, teacher, dims or (8,), 0.015)
    assert similarity > 0.1 and triplet > 0.1
    only = {"weight": 0.0, "dims": dims}
    for weights, expected in (
        ({"similarity_weight": 200.0}, 200 * similarity),
        ({"triplet_weight": 20.0}, 20 * triplet),
        ({"similarity_weight": 200.0, "triplet_weight": 20.0}, 200 * similarity + 20 * triplet),
    ):
        found = value(VectorDistillLoss(**only, **weights), vectors, taught(teacher), parts)
        assert_values(found, expected, atol=1e-8)


def test_all_three_terms_are_their_sum():
    vectors, teacher = embeddings(2 * COUNT), embeddings(2 * COUNT, seed=1)
    similarity, triplet = naive(vectors, teacher, (8,), 0.015)
    cosine = float((1 - torch.cosine_similarity(vectors, teacher)).mean())
    loss = VectorDistillLoss(weight=10.0, similarity_weight=200.0, triplet_weight=20.0)
    assert_values(value(loss, vectors, taught(teacher), 2), 10 * cosine + 200 * similarity + 20 * triplet, atol=1e-8)


def test_a_model_that_is_its_teacher_has_no_loss_but_that_of_the_margin():
    vectors = embeddings(2 * COUNT)
    for distance in ("cosine", "mse", "l2"):
        assert_values(value(VectorDistillLoss(distance=distance), vectors, taught(vectors)), 0.0, atol=1e-12)
    assert_values(
        value(VectorDistillLoss(weight=0.0, similarity_weight=1.0), vectors, taught(vectors)), 0.0, atol=1e-12
    )
    loss = VectorDistillLoss(weight=0.0, triplet_weight=1.0, triplet_margin=0.0)
    assert_values(value(loss, vectors, taught(vectors)), 0.0, atol=1e-12)


def test_relative_similarity_by_hand():
    """Three texts, pairs (0,1), (0,2), (1,2) found at .5, .3, .4 and wanted at .1, .9, .2, margin .05: of (.5, .3) the
    second should be larger: .2 + .05; (.5, .4): .1 + .05; (.3, .4): the first: .1 + .05. Mean .55/3."""
    found, wanted = torch.eye(3, dtype=float64), torch.eye(3, dtype=float64)
    for (i, j), own, theirs in (((0, 1), 0.5, 0.1), ((0, 2), 0.3, 0.9), ((1, 2), 0.4, 0.2)):
        found[i, j] = found[j, i] = own
        wanted[i, j] = wanted[j, i] = theirs
    assert_values(relative_similarity(found, wanted, 0.05), 0.55 / 3, atol=1e-12)
    assert_values(relative_similarity(found[:2, :2], wanted[:2, :2], 0.05), 0.0)


def test_a_text_shared_by_queries_is_one_of_the_texts_and_each_time_a_target():
    """Row 2 is a candidate of both queries: three distances of candidates, but two texts among the similarities."""
    vectors, teacher = embeddings(4), embeddings(4, seed=1)
    batch = replace(
        batch_of([0, 1], [[2, 3], [2, 0]], mask=[[True, True], [True, False]]),
        teacher=TeacherVectors(teacher, teacher),
    )
    distances = (1 - torch.cosine_similarity(vectors, teacher)).tolist()
    expected = (distances[0] + distances[1] + 2 * distances[2] + distances[3]) / 5
    for parts in (1, 2):
        assert_values(value(VectorDistillLoss(), vectors, batch, parts), expected, atol=1e-10)
    similarity, _ = naive(vectors, teacher, (8,), 0.015)
    loss = VectorDistillLoss(weight=0.0, similarity_weight=1.0)
    assert_values(value(loss, vectors, batch, 2), similarity, atol=1e-10)


def test_gradients():
    loss = VectorDistillLoss(similarity_weight=2.0, triplet_weight=3.0, dims=(8, 4))
    batch = taught(embeddings(2 * COUNT, seed=1))
    assert gradcheck(lambda v: value(loss, v, batch), (embeddings(2 * COUNT).requires_grad_(),), eps=1e-7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distance": "dot"}, "distance must be one of cosine, mse, l2, got 'dot'"),
        ({"weight": 0.0}, "weight, similarity_weight and triplet_weight are all 0; set at least one"),
        ({"dims": (4,)}, r"dims=\[4\] needs similarity_weight or triplet_weight > 0"),
        ({"dims": (0,), "similarity_weight": 1.0}, r"dims must be integers >= 1 or null, got \[0\]"),
        ({"triplet_weight": -1.0}, "triplet_weight must be >= 0, got -1.0"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        VectorDistillLoss(**keys)


def test_sizes_that_do_not_meet():
    with pytest.raises(
        ValueError, match=r"the teacher's embeddings have 5 dimensions and the model's 8; add a projection"
    ):
        VectorDistillLoss().check_sizes(8, 5)
    between = VectorDistillLoss(weight=0.0, similarity_weight=1.0, dims=(8, 4))
    between.check_sizes(8, 5)
    with pytest.raises(ValueError, match=r"loss\.dims must be <= 6, the embedding size, got \[8, 4\]"):
        between.check_sizes(6, 5)
    with pytest.raises(ValueError, match=r"this update has 257 texts, more than 256; lower trainer\.batch_size"):
        relative_similarity(torch.eye(257), torch.eye(257), 0.1)
    with pytest.raises(ValueError, match=r"needs embeddings of each text, the teacher's as Batch\.teacher"):
        VectorDistillLoss().in_batch(embeddings(2 * COUNT), replace(taught(embeddings(2 * COUNT)), teacher=None))
