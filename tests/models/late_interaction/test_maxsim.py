"""MaxSim over packed rows: values, gradients and memory against the form with a tensor of all token pairs."""

import pytest
import torch
from torch.testing import assert_close

from rankpo.models.engine import maxsim as engine
from rankpo.models.engine.maxsim import EMPTY, maxsim, paired_maxsim
from rankpo.types import Vectors

QUERIES, DOCUMENTS = (3, 1, 5, 2), (4, 7, 1, 7, 2, 11)


def vectors(counts, seed=0, dtype=torch.float64, dim=6):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(counts), dim, generator=generator, dtype=dtype)
    return Vectors(rows, torch.tensor(counts, dtype=torch.int64))


def naive(queries, documents):
    """[q, c] by loops over pairs of texts."""
    left, right = queries.rows.split(queries.counts.tolist()), documents.rows.split(documents.counts.tolist())
    scores = [[(q @ d.T).amax(1).sum() if len(d) else q.new_tensor(EMPTY) for d in right] for q in left]
    return torch.stack([torch.stack(row) for row in scores])


def leaves(*several):
    return [Vectors(item.rows.clone().requires_grad_(), item.counts) for item in several]


def test_the_score_by_hand():
    queries = Vectors(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([2]))
    documents = Vectors(torch.tensor([[3.0, -1.0], [1.0, 0.5], [-2.0, -4.0]]), torch.tensor([2, 1]))
    assert maxsim(queries, documents).tolist() == [[3.0 + 1.0, -2.0 - 8.0]]
    assert paired_maxsim(queries, documents.select(torch.tensor([1]))).tolist() == [-10.0]


@pytest.mark.parametrize("scores_per_block", [1, 40, 1 << 18])
@pytest.mark.parametrize("rows_per_block", [1, 8, 1024])
def test_scores_and_gradients_are_those_of_the_naive_form(monkeypatch, rows_per_block, scores_per_block):
    monkeypatch.setitem(engine.ROWS, "cpu", rows_per_block)
    monkeypatch.setitem(engine.SCORES, "cpu", scores_per_block)
    monkeypatch.setattr(engine, "ROWS_IN_PLACE", rows_per_block)
    monkeypatch.setattr(engine, "COLUMNS_IN_PLACE", min(scores_per_block, 256))
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    weights = torch.randn(len(queries), len(documents), generator=torch.Generator().manual_seed(3)).double()
    found = []
    for form in (maxsim, naive):
        left, right = leaves(queries, documents)
        scores = form(left, right)
        (scores * weights).sum().backward()
        found.append((scores.detach(), left.rows.grad, right.rows.grad))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert_close(maxsim(queries, documents), found[1][0], atol=1e-12, rtol=0)  # Without a graph, no places are kept.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_without_gradient_of_every_type_and_under_autocast(dtype):
    """Documents without vectors in between, and products that autocast would round."""
    queries, documents = vectors(QUERIES, 1, dtype), vectors((0, 4, 0, 0, 7, 1, 0), 2, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = maxsim(queries, documents)
    assert found.dtype == dtype
    assert_close(
        found.float(),
        naive(queries, documents).float(),
        rtol=1e-5 if dtype == torch.float32 else 2e-2,
        atol=1e-2 if dtype == torch.bfloat16 else 1e-5,
    )


def test_gradcheck_in_float64():
    queries, documents = leaves(vectors((2, 3), 4), vectors((3, 1, 4), 5))

    def of_rows(form, chosen):
        return lambda left, right: form(Vectors(left, queries.counts), chosen(Vectors(right, documents.counts)))

    assert torch.autograd.gradcheck(of_rows(maxsim, lambda item: item), (queries.rows, documents.rows))
    first = torch.tensor([2, 0])
    assert torch.autograd.gradcheck(
        of_rows(paired_maxsim, lambda item: item.select(first)), (queries.rows, documents.rows)
    )


def test_pairs_are_the_diagonal_with_its_gradient():
    queries, documents = vectors((3, 1, 5, 2, 4, 1), 6), vectors(DOCUMENTS, 7)
    found = []
    for form in (paired_maxsim, lambda q, d: maxsim(q, d).diagonal()):
        left, right = leaves(queries, documents)
        scores = form(left, right)
        (scores * torch.arange(1.0, 7.0)).sum().backward()
        found.append((scores.detach(), left.rows.grad, right.rows.grad))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("asked", "given"), [((2, 0, 3), (0, 4, 1)), ((0, 0), (3, 2)), ((2, 2), (0, 0)), ((), (2,))])
def test_texts_without_vectors(asked, given):
    """A query without vectors scores 0, a document without vectors below every other; gradients stay finite."""
    queries, documents = leaves(vectors(asked, 8), vectors(given, 9))
    scores = maxsim(queries, documents)
    expected = [[EMPTY if d == 0 else 0.0 for d in given] for q in asked if q == 0]
    assert [row for row, q in zip(scores.tolist(), asked, strict=True) if q == 0] == expected
    if asked:
        assert_close(scores, naive(queries, documents), atol=1e-12, rtol=0)
    if len(asked) == len(given):
        assert_close(paired_maxsim(queries, documents), scores.diagonal())
        (paired_maxsim(queries, documents).sum() + scores.sum()).backward()
        assert bool(torch.isfinite(queries.rows.grad).all()) and bool(torch.isfinite(documents.rows.grad).all())


def test_it_equals_sentence_transformers():
    similarity = pytest.importorskip("sentence_transformers.util.similarity")
    queries, documents = vectors(QUERIES, 10, torch.float32), vectors(DOCUMENTS, 11, torch.float32)
    left, right = ([*item.rows.split(item.counts.tolist())] for item in (queries, documents))
    assert_close(maxsim(queries, documents), similarity.maxsim(left, right), atol=1e-5, rtol=0)
    pairs = documents.select(torch.arange(4))
    assert_close(paired_maxsim(queries, pairs), similarity.maxsim_pairwise(left, right[:4]), atol=1e-5, rtol=0)


def allocated(form, queries, documents):
    """The largest tensor, in numbers, that forward and backward allocate."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            made = function(*arguments, **(keywords or {}))
            for item in made if isinstance(made, tuple | list) else (made,):
                if isinstance(item, torch.Tensor):
                    Sizes.largest = max(Sizes.largest, item.numel())
            return made

    left, right = leaves(queries, documents)
    with Sizes():
        form(left, right).sum().backward()
    return Sizes.largest


def test_no_tensor_of_all_token_pairs_is_made():
    """Sixty documents of 150 rows with 320 query rows: 2.9 million token pairs, of which a block of a quarter million is held."""
    queries, documents = vectors((32,) * 10, 12, torch.float32, 8), vectors((150,) * 60, 13, torch.float32, 8)
    pairs = 320 * 150 * 60
    assert allocated(maxsim, queries, documents) <= engine.SCORES["cpu"] < pairs / 2
    twice = vectors((300,) * 60, 14, torch.float32, 8)
    assert allocated(maxsim, queries, twice) <= engine.SCORES["cpu"]
