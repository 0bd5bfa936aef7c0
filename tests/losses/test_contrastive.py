"""ContrastiveLoss: the golden table, one loop per query as the naive truth, and changes that must not matter.

The golden cosines are given, not the vectors. Rows 0..5 are q1, q2, positive 1, negative 1, positive 2, negative 2;
their products are set to the cosines by a Cholesky factor, the unused diagonal to 2, so that one exists.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.contrastive import ContrastiveLoss, FalseNegatives, Hardness
from rankpo.losses.matryoshka import truncate
from rankpo.losses.rankpo import RankPOLoss
from rankpo.types import Batch, Labels, Sequences
from tests.losses.tables import assert_values, labels

COSINES = tensor([[0.8, 0.6, 0.3, 0.1], [0.2, 0.4, 0.7, 0.75]], dtype=float64)
OWN = tensor([[0.8, 0.6], [0.7, 0.75]], dtype=float64)


def loss(**keys) -> ContrastiveLoss:
    return ContrastiveLoss(**{"temperature": 0.1, **keys})


def batch_of(queries, candidates, mask=None, positives=None, teacher=None) -> Batch:
    """A batch over rows of nothing: the loss reads embeddings, not tokens."""
    rows = tensor(candidates)
    known = Labels(
        relevance=torch.zeros(rows.shape),
        mask=torch.ones(rows.shape, dtype=torch.bool) if mask is None else tensor(mask),
        confidence=torch.ones(len(rows)),
        teacher=None if teacher is None else tensor(teacher, dtype=float64),
    )
    empty = Sequences(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    pairs = None if positives is None else tensor(positives)
    ids = tuple(f"id{i}" for i in range(len(rows)))
    return Batch(empty, None if queries is None else tensor(queries), rows, known, ids, pairs)


def golden_embeddings() -> torch.Tensor:
    gram = 2 * torch.eye(6, dtype=float64)
    gram[:2, 2:] = COSINES
    gram[0, 1], gram[2, 4], gram[2, 5], gram[3, 4] = 0.5, 0.25, 0.15, 0.35
    gram = gram.triu() + gram.triu(1).T
    return torch.linalg.cholesky(gram)


GOLDEN = batch_of([0, 1], [[2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("keys", "q1", "q2"),
    [
        ({}, 0.1336434, 0.9951930),
        ({"false_negatives": FalseNegatives(margin=0.1)}, 0.1336434, 0.9951930),
        ({"false_negatives": FalseNegatives(margin=0.0)}, 0.1336434, 0.0549852),
        ({"false_negatives": FalseNegatives(ratio=0.95)}, 0.1336434, 0.0549852),
        ({"false_negatives": FalseNegatives(ratio=0.7)}, 0.0076207, 0.0549852),
        ({"hardness": Hardness(strength=5.0)}, 1.3153169, 4.2649581),
        ({"hardness": Hardness(mode="in_batch", strength=9.0)}, 0.2133655, 1.5066524),
        ({"hardness": Hardness(mode="all", strength=5.0)}, 1.3217512, 4.2695801),
        ({"symmetric": True}, 0.0680595, 0.5066714),
        ({"query_query": True}, 0.1762802, 1.0440088),
        ({"document_document": True}, 0.1385223, 1.0103465),
        ({"query_query": True, "document_document": True}, 0.1809560, 1.0584456),
        ({"deduplicate_pool": False}, 0.1336434, 0.9951930),
    ],
)
def test_golden_in_batch(keys, q1, q2):
    assert_values(loss(**keys).in_batch(golden_embeddings(), GOLDEN).losses, q1, q2)


def test_golden_document_to_query():
    metrics = loss(symmetric=True).in_batch(golden_embeddings(), GOLDEN).metrics
    assert_values(2 * metrics["loss/document_to_query"], 0.0024757, 0.0181499)
    assert_values(2 * metrics["loss/query_to_document"], 0.1336434, 0.9951930)


def test_golden_own_negatives():
    own = loss(negatives="own")
    assert_values(own(OWN, labels(2)).losses, 0.1269280, 0.9740770)
    dropped = loss(negatives="own", false_negatives=FalseNegatives(ratio=0.7))(OWN, labels(2))
    assert_values(dropped.losses, 0.0, 0.0)
    hard = loss(negatives="own", hardness=Hardness(strength=5.0))(OWN, labels(2)).losses
    assert_close(hard, tensor([log(1 + exp(-2 + 3)), log(1 + exp(0.5 + 3.75))], dtype=float64))


def test_golden_gradient_at_the_cosines_of_q1():
    """∂L/∂d_j = g_j·q1 for the loss of q1, so g_j = (∂L/∂d_j · q1)/(q1 · q1)."""
    embeddings = golden_embeddings().requires_grad_()
    (gradient,) = torch.autograd.grad(loss().in_batch(embeddings, GOLDEN).losses[0], embeddings)
    query = embeddings.detach()[0]
    assert_values(gradient[2:] @ query / (query @ query), -1.2509797, 1.1840511, 0.0589504, 0.0079781)
    softmax = (COSINES[0] / 0.1).softmax(0)
    assert_close(gradient[2:] @ query / (query @ query), (softmax - tensor([1.0, 0, 0, 0])) / 0.1)


def test_golden_repeated_negative():
    """Negative 1 twice in q1's candidates: one entry, unless the pool is not deduplicated."""
    twice = batch_of([0, 1], [[2, 3, 3], [4, 5, 0]], mask=[[True] * 3, [True, True, False]])
    assert_values(loss().in_batch(golden_embeddings(), twice).losses, 0.1336434, 0.9951930)
    counted = loss(deduplicate_pool=False).in_batch(golden_embeddings(), twice)
    assert_values(counted.losses[:1], 0.2455470)
    assert counted.metrics["scores/pool"].tolist() == [5, 5]


def test_metrics_by_hand():
    embeddings = golden_embeddings().requires_grad_()
    metrics = loss(false_negatives=FalseNegatives(ratio=0.7)).in_batch(embeddings, GOLDEN).metrics
    assert_close(metrics["scores/positive"], tensor([0.8, 0.7], dtype=float64))
    assert_close(metrics["scores/negative"], tensor([0.3, 0.4], dtype=float64))
    assert_close(metrics["scores/margins"], tensor([0.5, 0.3], dtype=float64))
    assert_close(metrics["scores/false_negatives"], torch.tensor([1 / 3, 1 / 3]))
    assert metrics["scores/pool"].tolist() == [4, 4]
    assert loss().in_batch(embeddings, GOLDEN).metrics["scores/accuracies"].tolist() == [1, 0]
    assert not any(value.requires_grad for value in metrics.values())


def test_step_with_all_scores_equal_is_the_log_of_the_pool():
    equal = torch.ones(6, 3, dtype=float64)
    assert_values(loss().in_batch(equal, GOLDEN).losses, log(4), log(4), atol=1e-12)
    assert_values(loss(negatives="own")(torch.ones(2, 5), labels(2, 5)).losses.double(), log(5), log(5), atol=1e-6)


def naive(embeddings, batch, keys) -> torch.Tensor:
    """Losses [B] by one loop per query over Python lists, after the sentences of the design."""
    options = keys.get("false_negatives", FalseNegatives())
    hardness = keys.get("hardness", Hardness())
    dedup = keys.get("deduplicate_pool", True)
    queries, tau = batch.queries.tolist(), 0.1
    own = [[r for r, m in zip(c, k, strict=True) if m] for c, k in _rows(batch)]
    relevant = [
        {own[k][0] for k in range(len(own)) if queries[k] == queries[i]}
        | {r for k, r in (batch.positives.tolist() if batch.positives is not None else []) if queries[k] == queries[i]}
        for i in range(len(own))
    ]
    slots = [(k, g) for k in range(len(own)) for g in range(len(own[k]))]
    losses = []
    for i in range(len(own)):
        query, positive = embeddings[queries[i]], embeddings[own[i][0]]
        level = (query @ positive).item()
        if dedup:
            pool = [(r, r in own[i]) for r in sorted({own[k][g] for k, g in slots}) if r != own[i][0]]
            others = sorted({q for q in queries if q != queries[i]})
        else:
            pool = [(own[k][g], k == i) for k, g in slots if (k, g) != (i, 0)]
            others = [queries[k] for k in range(len(own)) if k != i]
        exponents = [query @ positive / tau]
        for row, mine in pool:
            score = query @ embeddings[row]
            if options.same_text and row in relevant[i]:
                continue
            if options.scores == "policy":
                judged, bar = score.item(), level
            elif mine:
                stated = dict(zip(own[i], batch.labels.teacher[i].tolist(), strict=False))
                judged, bar = stated[row], stated[own[i][0]]
            else:
                judged, bar = -1e9, 0.0
            if options.margin is not None and judged > bar + options.margin:
                continue
            if options.ratio is not None and judged > bar - (1 - options.ratio) * abs(bar):
                continue
            hard = hardness.mode == "all" or mine == (hardness.mode == "hard_negatives")
            exponents.append(score / tau + (hardness.strength * score.detach() if hard else 0))
        if keys.get("query_query"):
            exponents += [query @ embeddings[q] / tau for q in others if not (options.same_text and q == queries[i])]
        if keys.get("document_document"):
            for row, mine in pool:
                if not mine and not (options.same_text and row in relevant[i]):
                    exponents.append(positive @ embeddings[row] / tau)
        value = torch.stack(exponents).logsumexp(0) - exponents[0]
        if keys.get("symmetric"):
            back = [positive @ query / tau]
            for q in others:
                if not (options.same_text and own[i][0] in relevant[queries.index(q)]):
                    back.append(positive @ embeddings[q] / tau)
            value = (value + torch.stack(back).logsumexp(0) - back[0]) / 2
        losses.append(value)
    return torch.stack(losses)


def _rows(batch):
    return zip(batch.candidates.tolist(), batch.labels.mask.tolist(), strict=True)


def crowded() -> tuple[torch.Tensor, Batch]:
    """7 queries of which 0 and 3 have one text; candidates shared between queries, short lists, a repeated negative,
    known positives inside and outside the pool, and one positive that two queries share (1 and 5)."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.nn.functional.normalize(torch.randn(24, 8, generator=generator, dtype=float64), dim=1)
    queries = [0, 1, 2, 0, 3, 4, 5]
    candidates = [
        [6, 7, 8, 9],
        [10, 11, 6, 0],
        [12, 13, 13, 0],
        [14, 7, 15, 16],
        [17, 12, 0, 0],
        [10, 18, 19, 7],
        [20, 0, 0, 0],
    ]
    mask = [[True] * 4, [True] * 3 + [False], [True] * 3 + [False], [True] * 4, [True, True, False, False], [True] * 4]
    mask.append([True, False, False, False])
    teacher = torch.randn(7, 4, generator=generator, dtype=float64)
    teacher[2, 2] = teacher[2, 1]  # the repeated text has one score
    positives = [[0, 6], [1, 10], [1, 13], [3, 9], [4, 23], [6, 18], [2, 12]]
    return embeddings, batch_of(queries, candidates, mask, positives, teacher.tolist())


OPTIONS = {
    "plain": {},
    "counted": {"deduplicate_pool": False},
    "blind": {"false_negatives": FalseNegatives(same_text=False)},
    "counted and blind": {"deduplicate_pool": False, "false_negatives": FalseNegatives(same_text=False)},
    "margin": {"false_negatives": FalseNegatives(margin=0.05)},
    "ratio": {"false_negatives": FalseNegatives(ratio=0.8)},
    "both": {"false_negatives": FalseNegatives(ratio=0.9, margin=-0.1)},
    "teacher": {"false_negatives": FalseNegatives(margin=0.1, scores="teacher")},
    "teacher counted": {
        "false_negatives": FalseNegatives(ratio=0.9, scores="teacher"),
        "deduplicate_pool": False,
    },
    "hard": {"hardness": Hardness(strength=5.0)},
    "hard in batch": {"hardness": Hardness(mode="in_batch", strength=9.0), "deduplicate_pool": False},
    "hard all": {"hardness": Hardness(mode="all", strength=3.0)},
    "everything": {
        "query_query": True,
        "document_document": True,
        "symmetric": True,
        "false_negatives": FalseNegatives(margin=0.2),
        "hardness": Hardness(strength=2.0),
    },
    "everything counted": {
        "query_query": True,
        "document_document": True,
        "symmetric": True,
        "deduplicate_pool": False,
    },
    "everything counted and blind": {
        "query_query": True,
        "document_document": True,
        "symmetric": True,
        "deduplicate_pool": False,
        "false_negatives": FalseNegatives(same_text=False),
    },
}


@pytest.mark.parametrize("keys", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_loop(keys):
    embeddings, batch = crowded()
    left, right = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    weights = torch.arange(1.0, 8.0, dtype=float64)
    fast, slow = loss(**keys).in_batch(left, batch).losses, naive(right, batch, keys)
    assert_close(fast, slow)
    for value, leaf in ((fast, left), (slow, right)):
        (value * weights).sum().backward()
        assert leaf.grad is not None
    assert_close(left.grad, right.grad)


@pytest.mark.parametrize("keys", OPTIONS.values(), ids=OPTIONS)
def test_a_subset_of_queries_is_a_slice(keys):
    embeddings, batch = crowded()
    full = loss(**keys).in_batch(embeddings, batch)
    asked = tensor([5, 0, 3])
    part = loss(**keys).in_batch(embeddings, batch, asked)
    assert_close(part.losses, full.losses[asked])
    for name, value in full.metrics.items():
        assert_close(part.metrics[name], value[asked])
    assert part.weights is not None and part.weights.tolist() == [1, 1, 1]
    assert loss(**keys).in_batch(embeddings, batch, tensor([], dtype=torch.long)).losses.shape == (0,)


def test_options_make_a_difference():
    """A guard of the loop test: no option is without effect on the crowded batch."""
    embeddings, batch = crowded()
    values = [tuple(loss(**keys).in_batch(embeddings, batch).losses.tolist()) for keys in OPTIONS.values()]
    assert len(set(values)) == len(OPTIONS)


@pytest.mark.parametrize("keys", OPTIONS.values(), ids=OPTIONS)
def test_order_of_queries_candidates_and_rows_and_padding_change_nothing(keys):
    embeddings, batch = crowded()
    plain = loss(**keys).in_batch(embeddings, batch).losses
    order = tensor([4, 2, 6, 0, 5, 3, 1])
    where = order.argsort()
    shuffle = tensor([0, 3, 1, 2])  # the positive stays in column 0
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(1))  # new row of each old one
    moved = torch.empty_like(embeddings)
    moved[rows] = embeddings
    pad = torch.zeros(7, 2, dtype=torch.long)
    mask = torch.cat([batch.labels.mask[order][:, shuffle], pad.bool()], 1)
    teacher = torch.cat([batch.labels.teacher[order][:, shuffle], pad.double() + 9], 1)
    changed = replace(
        batch,
        queries=rows[batch.queries][order],
        candidates=torch.cat([rows[batch.candidates][order][:, shuffle], pad], 1),
        labels=Labels(torch.zeros(7, 6), mask, torch.ones(7), teacher),
        positives=torch.stack([where[batch.positives[:, 0]], rows[batch.positives[:, 1]]], 1),
    )
    assert_close(loss(**keys).in_batch(moved, changed).losses[where], plain)


def test_masked_query_text_stays_a_negative_of_others():
    """Row 9 is a known positive of query 0's text only: for query 1 it counts."""
    embeddings, batch = crowded()
    dropped = loss().in_batch(embeddings, batch).metrics["scores/false_negatives"]
    pool = len({r for c, k in _rows(batch) for r, m in zip(c, k, strict=True) if m})
    # query 0: positive of its twin (14), and 9; its twin: 6 and 9; query 1: 13; query 6: 18; 23 is not in the pool
    assert_close(dropped, torch.tensor([2.0, 1, 0, 2, 0, 0, 1]) / (pool - 1))


def test_all_negatives_dropped_gives_0_without_gradient():
    embeddings = golden_embeddings().requires_grad_()
    output = loss(false_negatives=FalseNegatives(margin=-5.0)).in_batch(embeddings, GOLDEN)
    output.losses.sum().backward()
    assert_close(output.losses, torch.zeros(2, dtype=float64), atol=0, rtol=0)
    assert_close(embeddings.grad, torch.zeros(6, 6, dtype=float64), atol=0, rtol=0)
    assert output.metrics["scores/accuracies"].tolist() == [1, 1]
    assert output.metrics["scores/margins"].tolist() == [0, 0]


def test_ratio_keeps_its_meaning_below_zero():
    """s_p = -.2, ratio .95: the bar is -.21; -.3 stays, -.205 goes."""
    scores = tensor([[-0.2, -0.3, -0.205]], dtype=float64)
    output = loss(negatives="own", false_negatives=FalseNegatives(ratio=0.95))(scores, labels(1, 3))
    assert_values(output.losses, log(1 + exp(-1)), atol=1e-12)


@pytest.mark.parametrize("keys", OPTIONS.values(), ids=OPTIONS)
def test_gradients_in_batch(keys):
    """Without hardness: its factor is a constant for autograd, and not for finite differences."""
    embeddings, batch = crowded()
    plain = loss(**{**keys, "hardness": Hardness()})
    assert gradcheck(lambda e: plain.in_batch(e, batch).losses, (embeddings.requires_grad_(),), fast_mode=True)


def test_gradients_own():
    scores = COSINES.clone().requires_grad_()
    assert gradcheck(lambda s: loss(negatives="own")(s, labels(2, 4)).losses, (scores,))
    (gradient,) = torch.autograd.grad(loss(negatives="own")(scores, labels(2, 4)).losses.sum(), scores)
    softmax = (COSINES / 0.1).softmax(1)
    assert_close(gradient, (softmax - tensor([[1.0, 0, 0, 0]])) / 0.1)


def test_hardness_weighs_negatives_by_a_constant():
    """∂L/∂s_j = softmax(a)_j/τ, without a term for the hardness itself."""
    scores = OWN.clone().requires_grad_()
    hard = loss(negatives="own", hardness=Hardness(strength=5.0))
    (gradient,) = torch.autograd.grad(hard(scores, labels(2)).losses.sum(), scores)
    logits = OWN / 0.1
    logits[:, 1] += 5 * OWN[:, 1]
    assert_close(gradient, (logits.softmax(1) - tensor([[1.0, 0.0]])) / 0.1)


def test_own_with_two_candidates_is_reference_free_rankpo():
    scores = torch.cat([OWN, OWN.flip(0) - 0.3])
    rankpo = RankPOLoss(beta=1.0, temperature=0.1, reference_free=True)(scores, labels(4))
    assert_close(loss(negatives="own")(scores, labels(4)).losses, rankpo.losses)


def test_own_is_unchanged_by_a_constant_a_permutation_and_padding():
    plain = loss(negatives="own", hardness=Hardness(strength=0.0))(COSINES, labels(2, 4)).losses
    own = loss(negatives="own")
    assert_close(own(COSINES + tensor([[3.0], [-1.0]]), labels(2, 4)).losses, plain)
    assert_close(own(COSINES[:, [0, 3, 1, 2]], labels(2, 4)).losses, plain)
    mask = tensor([[True] * 4 + [False]] * 2)
    padded = torch.cat([COSINES, tensor([[float("nan")], [9.0]], dtype=float64)], 1).requires_grad_()
    output = own(padded, Labels(torch.zeros(2, 5), mask, torch.ones(2)))
    output.losses.sum().backward()
    assert_close(output.losses, plain)
    assert padded.grad is not None and torch.isfinite(padded.grad).all()
    assert output.metrics["scores/pool"].tolist() == [4, 4]


def test_own_mask_finds_known_and_repeated_texts():
    _, batch = crowded()
    crossed = replace(batch, queries=None)
    expected = [[True, True, True, False], [True] * 3 + [False], [True, True, False, False], [True] * 4]
    expected += [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert loss(negatives="own").own_mask(batch).tolist() == expected
    free = loss(negatives="own", deduplicate_pool=False, false_negatives=FalseNegatives(same_text=False))
    assert free.own_mask(batch).tolist() == batch.labels.mask.tolist()
    # without query rows only the query's own pairs are known: 9 belongs to query 3 alone, 6 to query 0
    assert loss(negatives="own").own_mask(crossed)[0].tolist() == [True] * 4


def test_own_mask_ignores_what_stands_on_padding_between_candidates():
    """Row 0 stands on the padding in the middle, and is a real candidate after it."""
    holed = batch_of([4, 5], [[2, 9, 0], [3, 0, 0]], mask=[[True, True, True], [True, False, True]])
    assert loss(negatives="own").own_mask(holed).tolist() == holed.labels.mask.tolist()


def test_a_negative_on_the_bar_stays():
    tied = tensor([[0.5, 0.5]], dtype=float64)
    for options in (FalseNegatives(margin=0.0), FalseNegatives(ratio=1.0)):
        assert_values(loss(negatives="own", false_negatives=options)(tied, labels(1)).losses, log(2), atol=1e-12)


def test_matryoshka_is_applied_to_the_embeddings_in_batch():
    embeddings, batch = crowded()
    keys = {"hardness": Hardness(strength=5.0), "false_negatives": FalseNegatives(margin=0.0)}
    each = [loss(**keys).in_batch(truncate(embeddings, m), batch).losses for m in (8, 4, 2)]
    nested = loss(**keys, matryoshka_dims=(8, 4, 2), matryoshka_weights=(1.0, 2.0, 1.0)).in_batch(embeddings, batch)
    assert_close(nested.losses, (each[0] + 2 * each[1] + each[2]) / 4)
    assert_close(nested.metrics["loss/dim_4"], each[1])


def test_half_precision_and_autocast_are_computed_in_float32():
    embeddings, batch = crowded()
    half = embeddings.bfloat16()
    expected = naive(half.double(), batch, {}).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(loss().in_batch(half, batch).losses, expected)
        assert_close(loss().in_batch(half.float(), batch).losses, expected)


def test_teacher_masks_own_candidates():
    """Teacher .9, .5, .95 with margin 0 drops the third; the policy would drop the second."""
    scores = tensor([[0.5, 0.6, 0.4]], dtype=float64)
    known = replace(labels(1, 3), teacher=tensor([[0.9, 0.5, 0.95]]))
    taught = loss(negatives="own", false_negatives=FalseNegatives(margin=0.0, scores="teacher"))
    assert_values(taught(scores, known).losses, log(1 + exp(1)), atol=1e-12)
    with pytest.raises(ValueError, match=r"false_negatives\.scores=teacher needs teacher scores"):
        taught(scores, labels(1, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: loss(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: loss(negatives="all"), "negatives must be one of in_batch, own, got 'all'"),
        (lambda: loss(negatives="own", symmetric=True), "symmetric=True .* needs negatives=in_batch, got own"),
        (lambda: loss(negatives="own", query_query=True), "query_query=True .* needs negatives=in_batch, got own"),
        (lambda: loss(negatives="own", document_document=True), "document_document=True .* got own"),
        (lambda: loss(negatives="own", hardness=Hardness(mode="in_batch", strength=1.0)), "hardness.mode=in_batch"),
        (lambda: Hardness(mode="own"), "hardness.mode must be one of hard_negatives, in_batch, all, got 'own'"),
        (lambda: Hardness(strength=-1.0), "hardness.strength must be >= 0, got -1.0"),
        (lambda: FalseNegatives(margin=float("nan")), "false_negatives.margin must be finite or null, got nan"),
        (lambda: FalseNegatives(ratio=1.5), r"false_negatives.ratio must be in \(0, 1\] or null, got 1.5"),
        (lambda: FalseNegatives(scores="guide"), "false_negatives.scores must be one of policy, teacher, got 'guide'"),
        (lambda: FalseNegatives(scores="teacher"), "false_negatives.scores=teacher has no effect"),
        (lambda: loss(matryoshka_dims=(0,)), r"matryoshka_dims must be distinct integers >= 1, got \[0\]"),
        (lambda: loss()(OWN, labels(2)), "negatives=in_batch needs the embeddings of the update"),
        (lambda: loss(negatives="own").in_batch(golden_embeddings(), GOLDEN), "negatives=own needs scores"),
        (lambda: loss().in_batch(golden_embeddings(), replace(GOLDEN, queries=None)), "set loss.negatives=own"),
        (
            lambda: loss().in_batch(golden_embeddings(), batch_of([0, 1], [[2, 3], [4, 5]], [[True] * 2, [False] * 2])),
            r"candidate 0 must be a query's positive; it is masked for \['id1'\]",
        ),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("keys", [{}, {"query_query": True, "document_document": True, "symmetric": True}])
def test_queries_that_see_their_own_negatives_alone(keys):
    """In batch they have the loss of negatives=own; the other queries keep the whole pool."""
    alone = replace(GOLDEN, own_negatives=tensor([False, True]))
    embeddings = golden_embeddings()
    plain, mixed = (loss(**keys).in_batch(embeddings, batch).losses for batch in (GOLDEN, alone))
    own = loss(negatives="own")(COSINES[1][[2, 3]][None], labels(1)).losses[0]
    assert_close(mixed[0], plain[0])
    # with symmetric, the other half compares the positive with other queries: there is none, and its loss is 0
    assert_close(mixed[1], own / 2 if keys else own)
