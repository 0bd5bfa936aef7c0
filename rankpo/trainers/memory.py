"""Memory plan of a training run: what weights, gradients, optimizer and activations take on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rankpo.errors import OutOfMemory, is_out_of_memory
from rankpo.models.base import RankingModel
from rankpo.models.engine.dry_run import Pass, activation_bytes, measured_bytes, repeated
from rankpo.trainers.strategies.fully_sharded import repeated_blocks
from rankpo.types import Sequences

CPU_TOKENS = 16384  # A CPU does not become faster beyond the tokens that its caches hold.
KEPT_FREE = 0.1  # Share of the memory that auto leaves for fragments of the allocator and for evaluations.
STEP = 256  # auto is a multiple of this.
LARGE = 1_000_000  # Weights from which on a dry run has as many tokens as a chunk of a CPU.


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The bytes of one device during updates.

    weights: of the model and a live reference, with copies that a strategy makes. gradients, optimizer: of the trained
    weights. fixed, per_token: activations of n tokens are fixed + per_token · n. available: bytes for all of this, or
    None if the device does not say.
    """

    weights: int
    gradients: int
    optimizer: int
    fixed: float
    per_token: float
    available: int | None = None

    def activations(self, tokens: int) -> int:
        """Bytes of the activations of so many tokens."""
        return math.ceil(self.fixed + self.per_token * tokens)

    def total(self, tokens: int) -> int:
        """Bytes at the peak of an update with so many tokens at once."""
        return self.weights + self.gradients + self.optimizer + self.activations(tokens)

    def largest(self, kept_free: float = KEPT_FREE) -> int | None:
        """The largest max_tokens that leaves this share of the memory free, a multiple of 256 and at least that.

        None if the device does not say how much memory it has.
        """
        if self.available is None:
            return None
        room = self.available * (1 - kept_free) - self.total(0)
        return max(STEP, int(room / max(self.per_token, 1.0)) // STEP * STEP)

    def automatic(self, device: str) -> int:
        """The value of trainer.max_tokens=auto: what fits on a GPU, and on a CPU at most 16,384."""
        fits = self.largest()
        if fits is None:
            return CPU_TOKENS
        return min(CPU_TOKENS, fits) if device == "cpu" else fits

    def line(self, max_tokens: int) -> str:
        """One line with all parts, in GB of 10⁹ bytes, and advice if they do not fit."""
        parts = (
            f"memory: weights {_gigabytes(self.weights)} GB, gradients {_gigabytes(self.gradients)}, optimizer "
            f"{_gigabytes(self.optimizer)}, activations ≤ {_gigabytes(self.activations(max_tokens))} at max_tokens "
            f"{max_tokens:,}"
        )
        if self.available is None:
            return parts
        left = self.available - self.total(max_tokens)
        if left >= 0:
            return f"{parts}, free {_gigabytes(left)}"
        return f"{parts}, {_gigabytes(-left)} more than there is; {self.advice(max_tokens)}"

    def advice(self, max_tokens: int) -> str:
        """What to change if an update of `max_tokens` tokens does not fit."""
        fits = self.largest()
        if fits is None or fits >= max_tokens:  # The plan was wrong: other programs take memory, or a text is longer.
            fits = max(1, max_tokens // 2)
        smaller = f"set trainer.max_tokens={fits}"
        if self.available is not None and self.total(STEP) > self.available:
            return (
                f"{smaller}, trainer.gradient_checkpointing=true or model.use_peft=true: weights and optimizer fill it"
            )
        return f"{smaller}, the largest value that fits with {KEPT_FREE:.0%} kept free"


@contextmanager
def explained(plan: MemoryPlan | None, max_tokens: int) -> Iterator[None]:
    """Raises OutOfMemory with the key to change for an allocation that fails inside the block. plan: of the run, if any."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if plan is None or not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise OutOfMemory(
            f"out of memory with max_tokens {max_tokens:,} ({reason}); {plan.advice(max_tokens)}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a strategy divides memory over ranks. strategy: as `choose.name_of` gives it. ranks: their number."""

    strategy: str
    ranks: int

    @property
    def of_weights(self) -> int:
        """The number of ranks over which the weights are divided."""
        return self.ranks if self.strategy in ("FSDP", "DEEPSPEED-3") else 1

    @property
    def of_gradients(self) -> int:
        return self.ranks if self.strategy in ("FSDP", "DEEPSPEED-2", "DEEPSPEED-3") else 1

    @property
    def of_optimizer(self) -> int:
        return self.ranks if self.strategy == "FSDP" or self.strategy.startswith("DEEPSPEED") else 1

    @property
    def copies_gradients(self) -> bool:
        """Whether the strategy also holds the gradients in buckets for their reduction (DDP)."""
        return self.strategy in ("MULTI_GPU", "MULTI_CPU")

    @property
    def has_master_weights(self) -> bool:
        """Whether the optimizer steps on a float32 copy of the trained weights (DeepSpeed)."""
        return self.strategy.startswith("DEEPSPEED")


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each counted once."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def state_per_byte(optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], device: torch.device) -> float:
    """Bytes of optimizer state for each byte of a trained weight, seen on a small matrix."""
    weight = nn.Parameter(torch.zeros(128, 128, device=device))
    made = optimizer([weight])
    weight.grad = torch.zeros_like(weight)
    made.step()
    state = [value for value in made.state[weight].values() if isinstance(value, Tensor) and value.dim()]
    return size_of(state) / size_of([weight])


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The activations of a model in training: fixed + per_token · tokens, in bytes."""

    fixed: float
    per_token: float

    def with_more(self, per_token: float) -> Activations:
        """These activations and so many bytes more for each token."""
        return replace(self, per_token=self.per_token + per_token)


def activations_of(model: RankingModel, sequences: Sequences, given: Pass, max_tokens: int) -> Activations:
    """Returns the activations of the model from two dry runs, one of twice the tokens of the other.

    sequences: texts of the training data; the longest of them are repeated.
    """
    chunk = 4096 if sum(parameter.numel() for parameter in model.parameters()) > LARGE else STEP
    most = repeated(sequences, min(max_tokens, chunk))
    less = repeated(sequences, most.num_tokens // 2)
    try:
        sizes = [activation_bytes(model, part, given) for part in (less, most)]
    except RuntimeError:  # Sparse products and code of others cannot run without data.
        most, less = repeated(sequences, 2 * STEP), repeated(sequences, STEP)
        sizes = [measured_bytes(model, part, given) for part in (less, most)]
    if most.num_tokens == less.num_tokens:
        return Activations(fixed=0.0, per_token=sizes[1] / most.num_tokens)
    slope = max(0.0, (sizes[1] - sizes[0]) / (most.num_tokens - less.num_tokens))
    return Activations(fixed=max(0.0, sizes[1] - slope * most.num_tokens), per_token=slope)


def plan_of(
    model: RankingModel,
    references: Iterable[nn.Module],
    activations: Activations,
    state: float,
    sharing: Sharing,
    free: int | None,
) -> MemoryPlan:
    """Returns the plan of a run, before a strategy divides the model.

    references: live copies of the model. state: of `state_per_byte`. free: of `free_bytes`, now.
    """
    whole = size_of([*model.parameters(), *model.buffers()])
    copies = size_of(tensor for module in references for tensor in (*module.parameters(), *module.buffers()))
    trained = size_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    weights = whole if sharing.of_weights == 1 else whole // sharing.of_weights + _gathered(model)
    master = trained if sharing.has_master_weights else 0
    return MemoryPlan(
        weights=weights + copies,
        gradients=trained // sharing.of_gradients * (2 if sharing.copies_gradients else 1),
        optimizer=round((trained * state + master) / sharing.of_optimizer),
        fixed=activations.fixed,
        per_token=activations.per_token,
        available=None if free is None else free + whole + copies,
    )


def _gathered(model: RankingModel) -> int:
    """Bytes of the weights that are whole at once under sharding: two repeated blocks, and all that is outside them."""
    names = repeated_blocks(model)
    blocks = [size_of(module.parameters()) for module in model.modules() if type(module).__name__ in names]
    return size_of(model.parameters()) - sum(blocks) + 2 * max(blocks, default=0)


def _gigabytes(size: int) -> str:
    """A size in GB with two significant digits at least."""
    value = size / 1e9
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
