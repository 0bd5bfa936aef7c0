"""Token engine: reductions over the vocabulary from hidden states, without a [tokens, vocabulary] tensor.

The engine applies the output head to blocks of scored positions, reduces each block in float32, frees its logits, and
recomputes them in the backward pass. Peak memory grows with block · V, not with tokens · V. For divergences between two
models, it processes the hidden states of both block by block.

P: scored positions, all sequences together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Size of a block's logits: 48 MiB on a CPU, since glibc returns allocations above 32 MiB to the system and does not
# fragment its heap. A GPU reads the whole head for each block, so its blocks are larger.
BLOCK_ELEMENTS = {"cpu": 3 << 22, "cuda": 1 << 25}

Divergence = Callable[[Tensor, Tensor], Tensor]
Reduction = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Head:
    """The output head of a language model. weight: [V, D]. bias: [V] or None. softcap: Gemma's c in c·tanh(x/c)."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class ReferenceStates:
    """States of a second model at the same scored positions. hidden: [P, D'] without gradient.

    head: the output head of the second model; None if it is the policy's.
    """

    hidden: Tensor
    head: Head | None


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """Values to compute at each scored position in addition to the label's log-probability.

    reference: the second model's states; needed for reference_logps and divergences. divergences: name -> function of
    (reference_logps [n, V], policy_logps [n, V]) giving [n], differentiable in the second; float32 log-probabilities
    of a block. entropy: of the policy, in nats, without gradient. hidden: return the hidden states [P, D], for a
    value head. temperature divides the logits of both models.
    """

    reference: ReferenceStates | None = None
    divergences: Mapping[str, Divergence] = field(default_factory=dict)
    entropy: bool = False
    hidden: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.divergences and self.reference is None:
            raise ValueError(f"divergences {', '.join(self.divergences)} need a reference, got None")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")


class TokenValues(NamedTuple):
    """Values at the scored positions, [P] each, sequence after sequence; None if not requested.

    critic: V of a model with a value head (models/value_head.py).
    """

    logps: Tensor
    reference_logps: Tensor | None
    divergences: dict[str, Tensor]
    entropy: Tensor | None
    hidden: Tensor | None
    critic: Tensor | None = None


def token_values(hidden: Tensor, labels: Tensor, head: Head, request: TokenRequest) -> TokenValues:
    """Computes all values of the request in one pass over the positions. hidden: [P, D]; labels: [P]."""
    reference = request.reference
    constants = (labels,) if reference is None else (labels, reference.hidden.detach())
    fixed_head = head if reference is None or reference.head is None else reference.head

    def reduction(logits: Tensor, label: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if not (request.entropy or states):
            return (_LabelLogps.apply(logits, label),)
        policy = logits.log_softmax(-1)  # [n, V]
        values = [_gather(policy, label)]
        if reference is not None:
            with torch.no_grad():
                fixed = _logits(states[0], fixed_head, request.temperature).log_softmax(-1)
            values.append(_gather(fixed, label))
            values += [divergence(fixed, policy) for divergence in request.divergences.values()]
        if request.entropy:
            values.append(-(policy.detach().exp() * policy.detach()).nan_to_num().sum(-1))
        return tuple(values)

    values = list(over_vocabulary(reduction, hidden, head, *constants, temperature=request.temperature))
    entropy = values.pop().detach() if request.entropy else None
    return TokenValues(
        logps=values[0],
        reference_logps=None if reference is None else values[1].detach(),
        divergences=dict(zip(request.divergences, values[2:], strict=True)),
        entropy=entropy,
        hidden=hidden if request.hidden else None,
    )


def token_logps(hidden: Tensor, labels: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """log p(label) [P] in nats, float32. hidden: [P, D] at the positions that predict the labels [P]."""
    return token_values(hidden, labels, head, TokenRequest(temperature=temperature)).logps


def over_vocabulary(
    reduction: Reduction,
    hidden: Tensor,
    head: Head,
    *constants: Tensor,
    temperature: float = 1.0,
    block_elements: int | None = None,
) -> tuple[Tensor, ...]:
    """`reduction(logits [n, V], *constants of the block)` for block after block of positions, concatenated to [P].

    reduction: must return a tuple of [n] and depend only on its arguments, since the backward pass runs it again.
    constants: [P, …], split like the positions, without gradient. Gradients reach `hidden` and the head. Logits are at
    least float32 for any type of hidden states and head; in bfloat16 a policy equal to its reference would not give a
    loss of log 2.
    """
    elements = block_elements or BLOCK_ELEMENTS.get(hidden.device.type, BLOCK_ELEMENTS["cuda"])
    size = max(1, elements // head.weight.shape[0])
    options = (reduction, head.softcap, temperature, size, product_type(hidden))
    return _OverVocabulary.apply(options, hidden, head.weight, head.bias, *constants)


class _OverVocabulary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: tuple[Any, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None, *constants: Tensor
    ) -> tuple[Tensor, ...]:
        reduction, softcap, temperature, size, product = options
        ctx.options = options
        ctx.save_for_backward(hidden, weight, bias, *constants)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(product)
            blocks = []
            for start in range(0, max(1, len(hidden)), size):
                rows = slice(start, start + size)
                logits = _shape(head_product(hidden[rows].to(product), used.t()), bias, softcap, temperature)
                blocks.append(reduction(logits, *(constant[rows] for constant in constants)))
        return tuple(torch.cat(column) for column in zip(*blocks, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        reduction, softcap, temperature, size, product = ctx.options
        hidden, weight, bias, *constants = ctx.saved_tensors
        _, for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        accumulated = torch.promote_types(product, torch.float32)
        of_hidden = torch.empty_like(hidden) if for_hidden else None
        of_weight = torch.zeros_like(weight, dtype=accumulated) if for_weight else None
        of_bias = torch.zeros_like(bias, dtype=accumulated) if for_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(product)
            for start in range(0, len(hidden), size):
                rows = slice(start, start + size)
                block = hidden[rows].to(product)
                raw = head_product(block, used.t()).requires_grad_()
                with torch.enable_grad():
                    logits = _shape(raw, bias, softcap, temperature)
                    values = reduction(logits, *(constant[rows] for constant in constants))
                (of_raw,) = _gradient(values, raw, [g if g is None else g[rows] for g in gradients])
                if of_bias is not None:
                    of_bias += of_raw.sum(0)
                of_raw = of_raw.to(product)
                if of_hidden is not None:
                    of_hidden[rows] = head_product(of_raw, used)
                if of_weight is not None:
                    add_product(of_weight, of_raw.t(), block)
        weight_gradient = None if of_weight is None else of_weight.to(weight.dtype)
        return (
            None,
            of_hidden,
            weight_gradient,
            None if of_bias is None else of_bias.to(bias.dtype),
            *[None] * len(constants),
        )


class _LabelLogps(torch.autograd.Function):
    """log p(label) [n] of logits [n, V]. Its gradient onehot - softmax uses one buffer, where autograd needs four."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor) -> Tensor:
        normaliser = logits.logsumexp(-1)
        ctx.save_for_backward(logits, label, normaliser)
        return _gather(logits, label) - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, label, normaliser = ctx.saved_tensors
        of_logits = torch.sub(logits, normaliser[:, None]).exp_().mul_(-gradient[:, None])
        return of_logits.scatter_add_(-1, label[:, None], gradient[:, None]), None


def _gradient(values: tuple[Tensor, ...], raw: Tensor, gradients: list[Tensor | None]) -> tuple[Tensor, ...]:
    """d(Σ values · gradients)/d raw, over the values with a graph (not references and entropies)."""
    kept = [(value, g) for value, g in zip(values, gradients, strict=True) if g is not None and value.requires_grad]
    if not kept:
        return (torch.zeros_like(raw),)
    outputs, chosen = zip(*kept, strict=True)
    return torch.autograd.grad(outputs, raw, chosen)


def _logits(hidden: Tensor, head: Head, temperature: float) -> Tensor:
    """Logits [n, V] of a block, at least float32."""
    product = product_type(hidden)
    return _shape(head_product(hidden.to(product), head.weight.to(product).t()), head.bias, head.softcap, temperature)


def _shape(raw: Tensor, bias: Tensor | None, softcap: float | None, temperature: float) -> Tensor:
    logits = raw if bias is None else raw + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)  # Gemma 2, https://arxiv.org/abs/2408.00118 section 2
    return logits if temperature == 1.0 else logits / temperature


def product_type(hidden: Tensor) -> torch.dtype:
    """The type of the head's product: half precision only on GPUs, which accumulate it in float32."""
    if hidden.device.type != "cuda":
        return torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return hidden.dtype


def head_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in at least float32, without intermediate rounding to half precision."""
    if left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += head_product(left, right)


def _gather(values: Tensor, label: Tensor) -> Tensor:
    return values.gather(-1, label[:, None]).squeeze(-1)
