"""Tensor functions of several losses: stable logarithms, log-probabilities of scores, KL over candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def at_least_float32(tensor: Tensor) -> Tensor:
    """Converts the tensor to float32, but keeps float64, which gradcheck needs."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def negative_log_sigmoid(x: Tensor) -> Tensor:
    """ℓ(x) = -log σ(x) in nats, exact for large |x|."""
    return softplus(-x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, in nats.

    x = 0 counts as the largest number below 0: a probability that rounded to 1 gives a finite logarithm and a zero
    gradient instead of -inf and NaN.
    """
    return torch.log(-torch.expm1(x.clamp(max=-torch.finfo(x.dtype).tiny)))


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the last axis among the entries where mask is True; 0 elsewhere.

    scores [..., G], mask [..., G] bool. A fully masked row is 0 with zero gradient.
    """
    return scores.masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0.0)


LOGPS = ("auto", "candidates", "sigmoid", "none")


def logps_from_scores(scores: Tensor, mask: Tensor, temperature: float, logps: str) -> Tensor:
    """Log-probabilities [B, G] of candidates from raw scores [B, G].

    logps: `candidates`, log-softmax of s/τ over the query's unmasked candidates; `sigmoid`, log σ(s/τ), with
    independent candidates; `none`, s/τ is a log-probability. mask [B, G] bool: masked candidates get a finite value
    without gradient. Configs resolve `auto` by the model's kind (`Loss.fitted`); this function rejects it.
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

    1 - p is the probability of the other candidates, so the value is s_i - logsumexp_{j ≠ i} s_j, which stays exact
    when p rounds to 1. A single candidate has p = 1; its value here is 0, without gradient.
    """
    diagonal = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    others = mask[:, None, :] & ~diagonal  # [B, G, G]
    counted = mask & others.any(2)
    hidden = ~others & counted[:, :, None]  # Rows of one candidate stay finite.
    kept = scores.masked_fill(~mask, 0.0)
    rest = kept[:, None, :].expand(others.shape).masked_fill(hidden, -torch.inf).logsumexp(2)
    return (kept - rest).masked_fill(~counted, 0.0)


def candidate_kl(scores: Tensor, reference: Tensor, mask: Tensor, temperature: float, direction: str) -> Tensor:
    """KL divergence [B] in nats between softmax(reference/τ) = p and softmax(scores/τ) = π over the candidates.

    scores, reference, mask [B, G]; the reference is a constant. direction: `forward` KL(p ‖ π), `reverse` KL(π ‖ p).
    """
    policy = masked_log_softmax(scores / temperature, mask)
    fixed = masked_log_softmax(reference.detach() / temperature, mask)
    # Masked entries are 0 in both tensors, so their product with the difference is 0.
    if direction == "forward":
        return (fixed.exp() * (fixed - policy)).sum(-1)
    if direction == "reverse":
        return (policy.exp() * (policy - fixed)).sum(-1)
    raise ValueError(f"direction must be one of forward, reverse, got {direction!r}")
