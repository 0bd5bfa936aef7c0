"""Matryoshka representation learning, https://arxiv.org/abs/2205.13147: one loss on several sizes of an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rankpo.types import LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """Embedding sizes of a Matryoshka loss and the weight of each; weights None: 1 each.

    Raises ValueError unless dims are distinct positive integers and weights match them in number.
    """

    dims: Sequence[int]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_matryoshka(self.dims, self.weights)


def matryoshka_of(dims: Sequence[int] | None, weights: Sequence[float] | None) -> Matryoshka | None:
    """Returns the sizes in the keys `matryoshka_dims` and `matryoshka_weights`, or None for only the full size.

    Raises ValueError as `Matryoshka` does, and for weights without dims.
    """
    check_matryoshka(dims, weights)
    return None if dims is None else Matryoshka(dims=dims, weights=weights)


def truncate(embeddings: Tensor, dim: int) -> Tensor:
    """Returns the first `dim` components, renormalised to length 1: [N, D] to [N, dim]."""
    return normalize(embeddings[..., :dim], dim=-1)


def check_matryoshka(dims: Sequence[int] | None, weights: Sequence[float] | None) -> None:
    """Raises ValueError unless dims are distinct positive integers and weights match them in number."""
    if dims is None:
        if weights is not None:
            raise ValueError(f"matryoshka_weights={list(weights)} needs matryoshka_dims, which is not set")
        return
    if not dims or any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(f"matryoshka_dims must be distinct integers >= 1, got {list(dims)}")
    if weights is None:
        return
    if len(weights) != len(dims):
        raise ValueError(
            f"matryoshka_weights must have one weight per dim, got {list(weights)} for matryoshka_dims={list(dims)}"
        )
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"matryoshka_weights must be > 0, got {list(weights)}")


def sizes_and_weights(dims: Sequence[int], weights: Sequence[float] | None, size: int) -> dict[int, float]:
    """Weight of every size, largest size first; the full size D has weight 1 if `dims` lacks it.

    Raises ValueError for a dim above D, and like `check_matryoshka`.
    """
    check_matryoshka(dims, weights)
    if max(dims) > size:
        raise ValueError(f"matryoshka_dims must be <= {size}, the embedding size, got {list(dims)}")
    weight_of = {size: 1.0} | dict(zip(dims, weights or [1.0] * len(dims), strict=True))
    return dict(sorted(weight_of.items(), reverse=True))


def matryoshka(loss_of: Callable[[Tensor], LossOutput], embeddings: Tensor, sizes: Matryoshka | None) -> LossOutput:
    """Weighted mean over sizes of `loss_of(truncate(embeddings, size))`, in losses and in every term.

    embeddings [N, D]. The mean keeps the learning rate of the plain loss valid; sentence-transformers sums. The metrics
    are those of the full size and `loss/dim_<m>` [B] of each size. sizes None: the loss of the full embeddings.
    """
    if sizes is None:
        return loss_of(embeddings)
    weight_of = sizes_and_weights(sizes.dims, sizes.weights, embeddings.shape[-1])
    outputs = {size: loss_of(truncate(embeddings, size)) for size in weight_of}
    total = sum(weight_of.values())

    def mean(values: list[Tensor]) -> Tensor:
        weighted = [weight / total * value for weight, value in zip(weight_of.values(), values, strict=True)]
        return torch.stack(weighted).sum(0)

    full = outputs[embeddings.shape[-1]]
    terms = {
        name: Term(mean([output.terms[name].losses for output in outputs.values()]), term.weights, term.scale)
        for name, term in full.terms.items()
    }
    per_size = {f"loss/dim_{size}": output.losses.detach() for size, output in outputs.items()}
    losses = mean([output.losses for output in outputs.values()])
    return LossOutput(losses, full.weights, {**full.metrics, **per_size}, terms)
