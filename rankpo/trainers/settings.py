"""Settings of the trainer: the keys of its yaml, checked before the weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

EVERY_EPOCH = "epoch"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The keys of `trainer`.

    batch_size: queries per update over all devices. max_tokens: tokens whose activations one device holds at once, or
    "auto": as many as fit into its memory, see `MemoryPlan.automatic`.
    replay_batch_size: queries of replay_datasets per update; None for batch_size.
    epochs: length of the run, or max_steps updates if that is not None. eval_every, save_every: an interval in updates,
    "epoch", or None for never (save_every None keeps only FINAL and, with best_metric, the best).
    intermediate_checkpoints: checkpoints that the run never removes, at a list of updates, or at every eval_every if
    true. best_metric: such as "ndcg@20" or "jobs_dev/ndcg@20". Larger is better, except for loss and perplexity. None
    with holdout takes the main metric of the held-out queries. patience: evaluations without improvement before the run
    stops. final: FINAL holds the "last" or the "best" weights.
    ema: decay, in (0, 1), of an exponential moving average of the weights, which evaluations and FINAL use; None for the
    weights themselves.
    precision: the precision of forward passes, "fp32", "bf16", "fp16" or "auto". "auto" takes accelerate's
    mixed_precision if that is set, else bf16 on a GPU that supports it, and fp32 on other devices.
    reference: source of the reference scores: "stored" (computed once before the run), "live" (a frozen copy),
    "adapters" (the policy with its adapters off), or "auto" (adapters with LoRA, else stored).
    holdout: the fraction of the training queries in (0, 1), or their number, that is evaluated and not trained on.
    profile_updates: the number of updates after the first that torch.profiler records; 0 for none.
    memory_plan: whether the start of a run states the memory that it needs. The plan takes a dry run of an update without
    data, some tenths of a second.
    dropout: False disables dropout, so that the curve does not depend on the division into micro-batches.
    """

    batch_size: int = 32
    replay_batch_size: int | None = None
    max_tokens: int | str = 16384
    epochs: float = 1
    max_steps: int | None = None
    precision: str = "auto"
    max_grad_norm: float | None = 1.0
    gradient_checkpointing: bool = False
    dropout: bool = False
    log_every: int = 10
    eval_every: int | str | None = EVERY_EPOCH
    eval_at_start: bool = True
    save_every: int | str | None = None
    keep_checkpoints: int = 2
    intermediate_checkpoints: tuple[int, ...] | bool = ()
    holdout: float | None = None
    best_metric: str | None = None
    patience: int | None = None
    final: str = "last"
    ema: float | None = None
    reference: str = "auto"
    timeout_minutes: float = 30
    profile_updates: int = 0
    memory_plan: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.max_tokens, str) and self.max_tokens != AUTO:
            raise ValueError(f"max_tokens must be a whole number >= 1 or {AUTO}, got {self.max_tokens!r}")
        numbers = ("batch_size", "log_every", "keep_checkpoints")
        for name in numbers if self.max_tokens == AUTO else ("max_tokens", *numbers):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.replay_batch_size is not None and self.replay_batch_size < 1:
            raise ValueError(f"replay_batch_size must be >= 1 or null, got {self.replay_batch_size}")
        if self.profile_updates < 0:
            raise ValueError(f"profile_updates must be >= 0, got {self.profile_updates}")
        if not self.epochs > 0:
            raise ValueError(f"epochs must be > 0, got {self.epochs}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be >= 1 or null, got {self.max_steps}")
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            if not (value in (None, EVERY_EPOCH) or _is_update(value)):
                raise ValueError(f"{name} must be a number of updates >= 1, epoch or null, got {value!r}")
        self._require("precision", ("auto", "fp32", "bf16", "fp16"))
        self._require("final", ("last", "best"))
        self._require("reference", ("auto", "stored", "live", "adapters"))
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or null, got {self.max_grad_norm}")
        self._check_intermediate_checkpoints()
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1 or null, got {self.patience}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be a decay in (0, 1), such as 0.99, or null, got {self.ema:g}")
        if not self.timeout_minutes > 0:
            raise ValueError(f"timeout_minutes must be > 0, got {self.timeout_minutes}")
        if self.holdout is not None and not (0 < self.holdout < 1 or (self.holdout >= 1 and self.holdout % 1 == 0)):
            raise ValueError(f"holdout must be a fraction in (0, 1) or a number of queries, got {self.holdout:g}")
        if self.best_metric is None and self.holdout is None and (self.patience is not None or self.final == "best"):
            key = "patience" if self.patience is not None else "final=best"
            raise ValueError(
                f"{key} needs best_metric, which is null; set best_metric to a metric such as ndcg@20, or set holdout"
            )

    def _require(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_intermediate_checkpoints(self) -> None:
        asked = self.intermediate_checkpoints
        if asked is True and self.eval_every is None:
            raise ValueError(
                "intermediate_checkpoints=true writes a checkpoint every eval_every updates, and eval_every is null; set it"
            )
        if not isinstance(asked, bool) and not all(_is_update(step) for step in asked):
            raise ValueError(f"intermediate_checkpoints must be updates >= 1, got {list(asked)}")

    @property
    def token_budget(self) -> int:
        """max_tokens as a number. The task replaces "auto" by a number before a trainer is made."""
        if isinstance(self.max_tokens, str):
            raise ValueError(f"max_tokens={self.max_tokens} has no number yet; the memory plan of the run gives it")
        return self.max_tokens

    def total_steps(self, updates_per_epoch: int) -> int:
        """The number of updates of the whole run."""
        return self.max_steps or max(1, round(self.epochs * updates_per_epoch))

    def is_due(self, every: int | str | None, step: int, updates_per_epoch: int) -> bool:
        """Whether an action with the interval `every` is due after update `step` (counted from 1)."""
        if every is None:
            return False
        return step % (updates_per_epoch if every == EVERY_EPOCH else int(every)) == 0

    def is_intermediate(self, step: int, updates_per_epoch: int) -> bool:
        """Whether update `step` has a checkpoint that the run never removes."""
        if isinstance(self.intermediate_checkpoints, bool):
            return self.intermediate_checkpoints and self.is_due(self.eval_every, step, updates_per_epoch)
        return step in self.intermediate_checkpoints


def _is_update(value: object) -> bool:
    """Whether `value` is the number of an update, counted from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
