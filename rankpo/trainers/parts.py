"""Parts of a trainer: its constructor arguments and the objects that it derives from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo.data.loaders.ranking import DataLoader
from rankpo.data.loaders.stream import StreamLoader
from rankpo.data.random_keys import random_keys
from rankpo.evaluation.base import Evaluator
from rankpo.losses.base import Loss
from rankpo.models.base import RankingModel
from rankpo.models.reference import Reference
from rankpo.runs import processes
from rankpo.runs.callbacks import Callback
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.running import RunningMetrics
from rankpo.trainers import regularisation
from rankpo.trainers.averaging import WeightAverage
from rankpo.trainers.baseline import Measure, measured
from rankpo.trainers.largest import largest_group
from rankpo.trainers.memory import MemoryPlan
from rankpo.trainers.regularisation import Regularisation
from rankpo.trainers.schedules import Schedule
from rankpo.trainers.settings import TrainerSettings
from rankpo.trainers.state import Keeper, TrainerState
from rankpo.trainers.strategies.base import Strategy
from rankpo.trainers.strategies.choose import make_strategy
from rankpo.trainers.teacher import TeacherEmbeddings
from rankpo.trainers.update import Update
from rankpo.trainers.watch import Watch
from rankpo.types import Batch, LossOutput

SaveFinal = Callable[[RankingModel, Mapping[str, object], Mapping[str, Tensor] | None], None]


@dataclass(kw_only=True, eq=False)
class Parts:
    """Fields of every trainer.

    policy: the unwrapped model; `self.model` is the strategy's wrapped model. save_final: writes FINAL from the model,
    or from complete weights if they are not None; every rank calls it. baseline: metrics of the start model. stored:
    [slots] reference scores, or None. teacher: embeddings of the data by another model, or None. replay: a second
    loader whose groups join every update, or None. within: the trainer of the run, if this trainer is for one of several
    datasets or for the loss on held-out data; it then uses the strategy, weights and step of the run. Else None. memory:
    the memory plan of the run, or None if nothing reads it.
    """

    settings: TrainerSettings
    accelerator: Accelerator
    policy: RankingModel
    loss: Loss
    loader: DataLoader | StreamLoader
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    logger: MetricsLogger
    checkpoints: CheckpointStore
    save_final: SaveFinal
    evaluators: Sequence[Evaluator] = ()
    baseline: Measure = measured
    reference: Reference | None = None
    stored: np.ndarray | None = None
    teacher: TeacherEmbeddings | None = None
    replay: DataLoader | None = None
    callbacks: Sequence[Callback] = ()
    within: Parts | None = None
    memory: MemoryPlan | None = None

    main_term = "preference"  # The log names the main term of the loss so.
    has_held_out_loss = True  # Whether the loss is defined on data that no update trains on.

    def __post_init__(self) -> None:
        self.regularisation: Regularisation | None = None  # Of the current update, for models with sparse vectors.
        if self.reference is not None:
            self.reference.autocast = self.accelerator.autocast
        self.strategy: Strategy = self._strategy() if self.within is None else self.within.strategy
        self.model: nn.Module = self.strategy.wrapped
        if not self.strategy.sharded:  # Gathered parameters are gone when the backward pass computes again.
            self.policy.part_tokens = self.settings.token_budget
        self.optimizer = self.strategy.optimizer
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = self.settings.total_steps(self.loader.updates_per_epoch)
        self.state = TrainerState(loss_state=self.loss.initial_state())
        self.running = RunningMetrics()
        self.observed = RunningMetrics()  # Metrics of the current update alone, for losses with a state.
        decay = None if self.within is not None else self.settings.ema
        self.average = None if decay is None else WeightAverage(self.strategy, decay)
        self.values: list[Tensor] = []  # This rank's loss values of the current update, on the device.
        self.watch = self._watch()

    @property
    def losses(self) -> str:
        """The name of the loss, or of each dataset's loss."""
        return type(self.loss).__name__

    def largest_whole_group(self) -> int:
        """Tokens of the largest group that a forward pass holds whole; 0 if every group is within max_tokens or split."""
        if self.policy.computes_in_parts and not self.strategy.sharded:
            return 0
        return largest_group(self.policy.inputs, self.loader.current, self.settings.token_budget)

    def _strategy(self) -> Strategy:
        return make_strategy(self.accelerator, self.policy, self.optimizer, self.settings.max_grad_norm)

    def _watch(self) -> Watch:
        per_epoch = self.loader.updates_per_epoch
        return Watch(
            settings=self.settings,
            policy=self.policy,
            evaluators=self.evaluators,
            logger=self.logger,
            keeper=Keeper(
                store=self.checkpoints,
                strategy=self.strategy,
                scaler=self.accelerator.scaler,
                settings=self.settings,
                updates_per_epoch=per_epoch,
                device=self.policy.device,
                average=self.average,
            ),
            state=self.state,
            running=self.running,
            learning_rate=lambda: self.optimizer.param_groups[0]["lr"],
            updates_per_epoch=per_epoch,
            total_steps=self.total_steps,
            callbacks=self.callbacks,
        )

    def no_sync(self) -> AbstractContextManager[None]:
        return self.strategy.no_sync()

    def reference_scores(self, batch: Batch) -> Tensor | None:
        """Returns the reference model's scores [B, G] if the loss needs them, else None."""
        wanted = "reference" in self.loss.needs and self.reference is not None
        return self.reference.scores(batch) if wanted and self.reference is not None else None

    def seed(self) -> None:
        """Seeds dropout by (seed, update, rank), so that the masks do not depend on earlier draws."""
        (key,) = random_keys(1, self.loader.seed, self.state.step, processes.rank())
        torch.manual_seed(int(key) >> 1)

    def record(
        self, output: LossOutput, value: Tensor, sums: Mapping[str, float], prefix: str = "", counts: bool = True
    ) -> None:
        """Adds a micro-batch to the metrics of the current log line. An uncounted one only registers the names."""
        value = value if counts else torch.zeros_like(value)
        self.values.append(value)
        self.running.add_sum(f"{prefix}loss", value)
        for name, metric in output.logged(self.main_term, sums).items():
            values = metric if counts else metric.reshape(-1)[:0]
            self.running.add(f"{prefix}{name}", values)
            if self.state.loss_state or self.policy.sparsity is not None:
                self.observed.add(f"{prefix}{name}", values)

    def losses_are_finite(self) -> bool:
        """Reads the losses of the update's micro-batches on this rank, all at once, because a read waits for the device."""
        values = torch.stack(self.values).tolist()
        self.watch.learning = self.watch.learning or any(values)
        return all(map(math.isfinite, values))

    @property
    def regularisation_factor(self) -> float:
        """The factor, in [0, 1], of the regularisation weights in the current update."""
        run = self.within or self
        return 0.0 if self.policy.sparsity is None else self.policy.sparsity.factor(self.state.step, run.total_steps)

    def loss_state_of(self, name: str) -> dict[str, float]:
        """Returns the current state of the loss of the dataset `name`, as numbers by name."""
        return self.state.loss_state

    def next_loss_state(self, num_queries: int) -> None:
        """Updates the state of the loss after an update, if the loss has a state."""
        if self.state.loss_state:
            means = self.observed.result(processes.sum_over_ranks)
            self.state.loss_state = self.loss.next_state(self.state.loss_state, means, num_queries)

    def observed_means(self) -> dict[str, float]:
        """Returns the means of the metrics of the current update over all ranks. All ranks must call it."""
        return self.observed.result(processes.sum_over_ranks)

    def loss_arguments(self) -> Mapping[str, object]:
        """Returns the loss's keyword arguments that all micro-batches of an update share."""
        return {"state": self.state.loss_state} if self.state.loss_state else {}

    def clip(self) -> float:
        """Returns the gradient norm over all parameters (and shards), and clips it to max_grad_norm if that is set."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return self.strategy.clip(parameters, self.settings.max_grad_norm or math.inf)

    def _regularised(self, update: Update) -> Update:
        """Sets the regularisation of the update, for models with sparse vectors; returns the update with its sums."""
        sparsity = self.policy.sparsity
        if sparsity is None:
            return update
        self.regularisation, update = regularisation.of_update(
            sparsity, self.regularisation_factor, self.model, self.policy, update
        )
        return update

    def _check_sparsity(self) -> None:
        """Raises CollapseError if sparse vectors become zero, or are still dense after the warm-up."""
        if self.policy.sparsity is not None:
            state, settled = self.state.sparsity_state, self.regularisation_factor == 1
            vocabulary: int = self.policy.vocabulary
            self.state.sparsity_state = self.policy.sparsity.next_state(
                state, self.observed_means(), vocabulary, settled
            )
