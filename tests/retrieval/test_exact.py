"""Exact search against a full sort, with ties, in chunks of any size, and within the memory that it states."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rankpo.losses.vectors import inner_products
from rankpo.retrieval.exact import estimate_memory, search, search_vectors
from rankpo.types import Vectors


def naive(queries, corpus, depth):
    """Every score, sorted by score downwards, then by number upwards."""
    scores = queries.double().numpy() @ corpus.double().numpy().T
    order = np.stack([np.lexsort((np.arange(len(row)), -row)) for row in scores])[:, :depth]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("chunks", [(1024, 65536), (3, 7), (1, 1), (100, 50)])
@pytest.mark.parametrize("depth", [1, 5, 50])
def test_equal_to_a_full_sort_with_many_ties(chunks, depth):
    """Small whole numbers: exact in any order of summation, and full of equal scores, also at the border."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-2, 3, (11, 3), generator=generator).float()
    corpus = torch.randint(-2, 3, (50, 3), generator=generator).float()
    scores, numbers = search(queries, corpus, depth, queries_per_chunk=chunks[0], documents_per_chunk=chunks[1])
    expected_scores, expected = naive(queries, corpus, depth)
    np.testing.assert_array_equal(numbers.numpy(), expected)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@pytest.mark.parametrize("chunks", [(1024, 65536), (3, 7), (1, 1)])
def test_vectors_with_a_similarity_of_the_model(chunks):
    """One vector a text equals the plain search; several a text compare by the largest product, with ties."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(-2, 3, (60, 3), generator=generator).float()
    sizes = {"queries_per_chunk": chunks[0], "rows_per_chunk": chunks[1]}
    single = [Vectors(part, torch.ones(len(part), dtype=torch.int64)) for part in (rows[:11], rows[11:])]
    scores, numbers = search_vectors(*single, inner_products, 9, **sizes)
    expected = search(rows[:11], rows[11:], 9)
    assert_close(scores, expected[0], rtol=0, atol=0)
    assert numbers.tolist() == expected[1].tolist()

    def largest(queries, candidates):
        products = queries.rows @ candidates.rows.T
        return torch.stack([part.amax(1) for part in products.split(candidates.counts.tolist(), 1)], 1)

    counts = torch.tensor([1, 4, 2, 7, 35])
    scores, numbers = search_vectors(single[0], Vectors(rows[11:], counts), largest, 3, **sizes)
    every = torch.stack([part.amax(1) for part in (rows[:11] @ rows[11:].T).split(counts.tolist(), 1)], 1)
    order = np.stack([np.lexsort((np.arange(5), -row)) for row in every.numpy()])[:, :3]
    np.testing.assert_array_equal(numbers.numpy(), order)
    assert_close(scores, every.gather(1, torch.from_numpy(order)))


def test_vectors_without_a_finite_score_are_refused():
    rows = Vectors(torch.tensor([[float("inf")]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="query row 0: a score is inf"):
        search_vectors(rows, rows, inner_products, 1)


def test_all_equal_scores_give_the_first_numbers():
    _, numbers = search(torch.ones(2, 4), torch.ones(500, 4), 7, documents_per_chunk=30)
    assert numbers.tolist() == [list(range(7))] * 2


def test_more_wanted_than_there_is():
    scores, numbers = search(torch.eye(2), torch.eye(2), 10)
    assert numbers.tolist() == [[0, 1], [1, 0]] and scores.tolist() == [[1, 0], [1, 0]]


def test_no_query_and_no_document():
    scores, numbers = search(torch.zeros(0, 3), torch.ones(4, 3), 2)
    assert scores.shape == numbers.shape == (0, 2) and numbers.dtype == torch.int64
    scores, numbers = search(torch.ones(3, 2), torch.zeros(0, 2), 2)
    assert scores.shape == numbers.shape == (3, 0)


def test_half_precision_embeddings_are_compared_in_float32():
    queries, corpus = torch.randn(4, 64).bfloat16(), torch.randn(100, 64).bfloat16()
    scores, _ = search(queries, corpus, 5)
    assert scores.dtype == torch.float32
    assert_close(scores, (queries.float() @ corpus.float().T).topk(5).values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(value):
    corpus = torch.ones(6, 2)
    corpus[4, 0] = value
    for chunk in (6, 2):
        with pytest.raises(ValueError, match="document row 4: the score is"):
            search(torch.ones(3, 2), corpus, 2, documents_per_chunk=chunk)


PROGRAM = """
import re, sys, torch
from pathlib import Path
from rankpo.retrieval.exact import search, estimate_memory
torch.set_num_threads(1)


def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


search(torch.ones(2, 8), torch.ones(10, 8), 2)
queries, corpus = torch.randn(1024, 8), torch.randn(65536, 8)
before = peak()
search(queries, corpus, 100)
used = (peak() - before) * 1024
sys.stdout.write(f"{used} {estimate_memory(1024, 65536, 8, 100)}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is there on Linux only")
def test_the_memory_estimate_is_that_of_a_real_search():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, estimate = map(int, done.stdout.split())
    assert 0.7 * estimate < peak < 1.25 * estimate, (peak, estimate)


def test_the_estimate_by_hand():
    """10 queries, 20 documents, 4 dimensions, 3 hits: all in one chunk."""
    assert estimate_memory(10, 20, 4, 3) == 4 * (10 + 20 + 20) * 4 + 4 * 200 + 24 * 30
