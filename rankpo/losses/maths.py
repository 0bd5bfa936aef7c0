"""Tensor maths used by more than one loss: stable logarithms, log-probabilities of scores, KL over candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def negative_log_sigmoid(x: Tensor) -> Tensor:
    """ℓ(x) = -log σ(x) in nats, exact for large |x|."""
    return softplus(-x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, in nats.

    x = 0 counts as the smallest number below it: a probability that has rounded to 1 gives a finite logarithm
    and no gradient instead of -inf and NaN.
    """
    return torch.log(-torch.expm1(x.clamp(max=-torch.finfo(x.dtype).tiny)))


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the last axis among the entries where mask is True; 0 elsewhere.

    scores [..., G], mask [..., G] bool. A row without any True is 0 with zero gradient.
    """
    return scores.masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0.0)


LOGPS = ("auto", "candidates", "sigmoid", "none")


def logps_from_scores(scores: Tensor, mask: Tensor, temperature: float, logps: str) -> Tensor:
    """Log-probabilities [B, G] of candidates from raw scores [B, G], for losses that need more than differences.

    logps: `candidates`, log-softmax of s/τ over the query's unmasked candidates; `sigmoid`, log σ(s/τ), each
    candidate relevant or not by itself; `none`, s/τ already is a log-probability. mask [B, G] bool: a masked candidate
    has a finite value without gradient, whatever number stands there. `auto` stands in configs until the model is
    known (build.py), and is an error here.
    """
    scaled = (scores / temperature).masked_fill(~mask, 0.0)
    if logps == "candidates":
        return masked_log_softmax(scaled, mask)
    if logps == "sigmoid":
        return -negative_log_sigmoid(scaled)
    if logps == "none":
        return scaled
    raise ValueError(f"logps must be one of {', '.join(LOGPS[1:])}, got {logps!r}")


def candidate_log_odds(scores: Tensor, mask: Tensor) -> Tensor:
    """log p - log(1 - p) [B, G] in nats, p the softmax of scores [B, G] over the unmasked candidates; 0 elsewhere.

    1 - p is the probability of the other candidates, so that the value is s_i - logsumexp_{j ≠ i} s_j: exact where p
    has rounded to 1. A candidate that stands alone has p = 1; its value here is 0, without gradient.
    """
    diagonal = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    others = mask[:, None, :] & ~diagonal  # [B, G, G]
    counted = mask & others.any(2)
    hidden = ~others & counted[:, :, None]  # a row without any other candidate is left whole: finite, and not used
    kept = scores.masked_fill(~mask, 0.0)
    rest = kept[:, None, :].expand(others.shape).masked_fill(hidden, -torch.inf).logsumexp(2)
    return (kept - rest).masked_fill(~counted, 0.0)


def candidate_kl(scores: Tensor, reference: Tensor, mask: Tensor, temperature: float, direction: str) -> Tensor:
    """KL divergence [B] in nats between softmax(reference/τ) = p and softmax(scores/τ) = π over the candidates.

    scores, reference, mask [B, G]; the reference is a constant. direction: `forward` KL(p ‖ π), `reverse` KL(π ‖ p).
    """
    policy = masked_log_softmax(scores / temperature, mask)
    fixed = masked_log_softmax(reference.detach() / temperature, mask)
    # masked entries are 0 in both, so their difference, and with it their product, is 0
    if direction == "forward":
        return (fixed.exp() * (fixed - policy)).sum(-1)
    if direction == "reverse":
        return (policy.exp() * (policy - fixed)).sum(-1)
    raise ValueError(f"direction must be one of forward, reverse, got {direction!r}")
