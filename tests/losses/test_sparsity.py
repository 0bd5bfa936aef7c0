"""Regularisation of sparse vectors: by hand, as sentence-transformers' SpladeLoss has it, and its checks of a run."""

import pytest
import torch
from torch.testing import assert_close

from rankpo.losses.sparsity import CollapseError, Sparsity
from rankpo.types import Batch, Labels, LossOutput, Sequences

ROWS = torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 0], [0, 1, 1, 0], [2, 2, 2, 0], [0, 0, 0, 4]])


def batch(queries=(0, 1), candidates=((2, 3), (3, 4)), mask=((True, True), (True, False))):
    labels = Labels(torch.zeros(len(queries), 2), torch.tensor(mask), torch.ones(len(queries)))
    sequences = Sequences(torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64))
    return Batch(sequences, torch.tensor(queries), torch.tensor(candidates), labels, tuple("ab"[: len(queries)]))


def value(sparsity, rows, factor=1.0, queries=None, given=None):
    """The sum of the terms as the training loop reduces it."""
    whole = batch() if given is None else given
    activity = sparsity.activity(rows.detach(), batch())
    output = sparsity.added(LossOutput(torch.zeros(len(whole))), rows, whole, activity, factor, queries)
    sums = sparsity.denominators(*(int(texts) for texts in activity.texts))
    assert sums.keys() == output.terms.keys()
    values = [term.scale * (term.losses * term.weights).sum() / sums[name] for name, term in output.terms.items()]
    return sum(values), output


def flops(rows):
    return rows.mean(0).square().sum()


FORMS = {
    "flops": ({}, lambda q, d: 0.5 * flops(q) + 0.25 * flops(d)),
    "documents only": ({"query_weight": 0}, lambda q, d: 0.25 * flops(d)),
    "l1": ({"kind": "l1"}, lambda q, d: 0.5 * q.sum(1).mean() + 0.25 * d.sum(1).mean()),
    # one text of the documents has three active entries, the others fewer; all count in the mean
    "threshold": (
        {"document_threshold": 2, "query_weight": 0},
        lambda q, d: 0.25 * flops(d * (d > 0).sum(1, keepdim=True).gt(2)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_by_hand(form):
    """Row 3 is a candidate twice and counts twice; the masked candidate 4 does not count."""
    keys, expected = FORMS[form]
    sparsity = Sparsity(**{"query_weight": 0.5, "document_weight": 0.25, **keys})
    ours, theirs = ROWS.clone().requires_grad_(), ROWS.clone().requires_grad_()
    found, _ = value(sparsity, ours)
    wanted = expected(theirs[[0, 1]], theirs[[2, 3, 3]])
    assert_close(found, wanted)
    assert_close(torch.autograd.grad(found, ours), torch.autograd.grad(wanted, theirs))


def test_parts_add_up_to_the_whole():
    """Queries asked one by one, as ranks and micro-batches do it, sum to value and gradient of all."""
    sparsity = Sparsity(query_weight=0.5, document_weight=0.25)
    whole, parts = ROWS.clone().requires_grad_(), ROWS.clone().requires_grad_()
    total, _ = value(sparsity, whole)
    added = sum(value(sparsity, parts, queries=torch.tensor([number]))[0] for number in range(2))
    assert_close(added, total)
    assert_close(torch.autograd.grad(added, parts), torch.autograd.grad(total, whole))


def test_metrics():
    _, output = value(Sparsity(query_weight=0, document_weight=0), ROWS)
    assert output.terms == {}
    assert output.metrics["sparsity/query_active"].tolist() == [2, 1]
    assert output.metrics["sparsity/document_active"].tolist() == [2.5, 3]
    # of three documents, entry 0 is active in 2, entries 1 and 2 in 3
    assert_close(output.metrics["sparsity/flops"], torch.tensor([2 / 3 + 1, 1.0]))


def test_the_schedule_is_quadratic():
    sparsity = Sparsity(warmup=0.5)
    assert [sparsity.factor(step, 20) for step in (0, 5, 10, 19)] == [0, 0.25, 1, 1]
    assert Sparsity(warmup=0).factor(0, 20) == 1


def test_the_schedule_is_that_of_sentence_transformers():
    callbacks = pytest.importorskip("sentence_transformers.sparse_encoder.callbacks.splade_callbacks")
    theirs = object.__new__(callbacks.SpladeRegularizerWeightSchedulerCallback)
    theirs.scheduler_type, theirs.warmup_steps = callbacks.SchedulerType.QUADRATIC, int(100 * (1 / 3))
    sparsity = Sparsity(document_weight=3e-5)
    for step in (0, 1, 7, 32, 33, 34, 99):
        ours = sparsity.document_weight * sparsity.factor(step, 100)
        assert ours == pytest.approx(theirs._calculate_weight_value(step, 3e-5), rel=1e-12)


def run(sparsity, actives, settled=True):
    state = {}
    for query, document in actives:
        means = {"sparsity/query_active": query, "sparsity/document_active": document}
        state = sparsity.next_state(state, means, 100, settled)
    return state


def test_collapsed_and_dense_runs_end_with_the_key_to_change():
    sparsity = Sparsity(patience=3, document_weight=0.1)
    assert run(sparsity, [(0.5, 9), (0.5, 9), (2, 9), (0.5, 9), (0.5, 9)])["zero"] == 2
    with pytest.raises(
        CollapseError,
        match=r"for 3 updates, document .* \(0.30 in the last\); lower model.regularizer.document_weight \(now 0.1\)",
    ):
        run(sparsity, [(5, 0.3)] * 3)
    with pytest.raises(CollapseError, match=r"query vectors .* lower model.regularizer.query_weight"):
        run(sparsity, [(0, 0.3)] * 3)
    with pytest.raises(
        CollapseError,
        match=r"more than 25% of 100 entries active \(26 in the last\); raise model.regularizer.document_weight",
    ):
        run(sparsity, [(5, 26)] * 3)
    assert run(sparsity, [(5, 26)] * 9, settled=False)["dense"] == 0
    assert run(Sparsity(patience=None), [(0, 99)] * 9)["zero"] == 9
    with pytest.raises(CollapseError, match=r"lower optimizer.lr, since no regularisation is active"):
        run(Sparsity(patience=1, document_weight=0), [(5, 0)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "l2"}, "kind must be one of flops, l1, got 'l2'"),
        ({"query_weight": -1}, "query_weight must be >= 0, got -1"),
        ({"warmup": 1.5}, r"warmup must be in \[0, 1\], got 1.5"),
        ({"document_threshold": -2}, "document_threshold must be >= 0 or null, got -2"),
        ({"patience": 0}, "patience must be >= 1 or null, got 0"),
    ],
)
def test_keys_are_checked(keys, message):
    with pytest.raises(ValueError, match=message):
        Sparsity(**keys)
