"""Inputs shared by the tests of the losses: plain labels, and two pairs of log-probabilities as in the design."""

from __future__ import annotations

from torch import Tensor, arange, bool, float64, ones, tensor
from torch.testing import assert_close

from rankpo.types import Labels

# pair 1: log-ratios 1 and -.5; pair 2: -2 and 1
LOGPS = tensor([[-12.0, -14.0], [-20.0, -15.0]], dtype=float64)
REFERENCE = tensor([[-13.0, -13.5], [-18.0, -16.0]], dtype=float64)
LENGTHS = tensor([[4, 5], [8, 5]])

# five gaps against the reference, among them 0 and a large one
SCORES = tensor([[0.7, 0.5], [0.1, 0.4], [0.2, 0.2], [5.0, -3.0], [-1.0, 1.5]], dtype=float64)
FIXED = tensor([[0.6, 0.5], [0.3, 0.4], [0.2, 0.2], [1.0, 1.5], [-1.5, 1.0]], dtype=float64)


def labels(
    num_queries: int, num_candidates: int = 2, confidence: list[float] | None = None, lengths: Tensor | None = None
) -> Labels:
    """Column 0 relevant, everything unmasked, confidence 1 unless given."""
    relevance = (arange(num_candidates) == 0).double().repeat(num_queries, 1)
    stated = ones(num_queries, dtype=float64) if confidence is None else tensor(confidence, dtype=float64)
    mask = ones(num_queries, num_candidates, dtype=bool)
    return Labels(relevance=relevance, mask=mask, confidence=stated, lengths=lengths)


def assert_values(actual: Tensor, *expected: float, atol: float = 5.1e-8) -> None:
    """Equal to numbers printed with seven decimals."""
    assert_close(actual.detach().reshape(-1), tensor(expected, dtype=float64), atol=atol, rtol=0)
