"""Training loop, which all trainers share; subclasses define the loss of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from rankpo.data.loaders.planner import plan
from rankpo.data.loaders.ranking import Group
from rankpo.errors import ConfigError
from rankpo.losses.matryoshka import matryoshka
from rankpo.losses.reduction import denominators, total
from rankpo.runs import processes
from rankpo.runs.signals import noticed
from rankpo.trainers.memory import explained
from rankpo.trainers.parts import Parts
from rankpo.trainers.profiling import profiled
from rankpo.trainers.transfer import UpdatesAhead, transfer_to
from rankpo.trainers.update import MicroBatch, NonFiniteError, Prepared, Update
from rankpo.types import Batch, LossOutput


class BasicTrainer(Parts):
    """The base class of trainers, with the training loop.

    The order of calls is train() → train_step(update) → backward(micro_batch) → compute_loss(batch).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            if self.within is None:
                self.schedule.check(self.total_steps)
            self.check()
        except ValueError as error:  # Some invalid combinations of keys show only with loss, data and trainer.
            raise ConfigError([str(error)]) from error

    # Subclasses may override these.

    def check(self) -> None:
        """Raises ValueError if this trainer does not support the loss or the data."""

    def prepare(self, step: int) -> Prepared:
        """Prepares this rank's work for update `step` in a background thread. The result depends on `step` alone."""
        groups = self.loader.groups(step)
        micro_batches = self.micro_batches(groups)
        return Update(
            micro_batches=micro_batches,
            denominators=denominators(self.loss, self.policy.labels(self.loader.table, groups)),
            num_queries=len(groups),
            num_tokens=sum(item.batch.sequences.num_tokens for item in micro_batches if item.counts),
            ids=tuple(group.id for group in groups),
        )

    def micro_batches(self, groups: Sequence[Group]) -> list[MicroBatch]:
        """Splits this rank's share of the groups into micro-batches of at most max_tokens tokens."""
        costs = self.policy.inputs.costs(self.loader.table, groups)
        parts = plan(costs, processes.world_size(), self.settings.token_budget)[processes.rank()]
        cheapest = np.array([int(costs.argmin())])
        chosen = [[groups[index] for index in (part if len(part) else cheapest)] for part in parts]
        return [MicroBatch(self.collate(own), bool(len(part))) for own, part in zip(chosen, parts, strict=True)]

    def collate(self, groups: Sequence[Group]) -> Batch:
        return self.policy.inputs.collate(self.loader.table, groups, reference=self.stored)

    def begin(self, update: Prepared) -> Prepared:
        """Adds the quantities over all ranks and micro-batches that the first backward pass of the update needs."""
        return self._regularised(update) if isinstance(update, Update) else update

    @property
    def num_passes(self) -> int:
        """The number of optimizer steps on each update. Together they count as one step of the run."""
        return 1

    def backward(self, update: Prepared, last: bool = True) -> None:
        """Accumulates the gradient of the whole update. With `last`, ranks synchronise gradients once, at its end."""
        assert isinstance(update, Update)
        for number, item in enumerate(update.micro_batches):
            final = last and number == len(update.micro_batches) - 1
            with nullcontext() if final else self.no_sync():
                output = self.compute_loss(item.batch.to(self.policy.device))
                value = total(output, update.denominators)
                weight = processes.world_size() if item.counts else 0.0
                # nan_to_num removes the NaN of an uncounted batch, because 0 · NaN is NaN.
                self.strategy.backward(value * weight if weight else torch.nan_to_num(value) * 0)
                self.record(output, value.detach().double(), update.denominators, counts=item.counts)

    def loss_value(self, update: Prepared) -> float:
        """Returns this rank's share of the loss of an update, without any gradient. All ranks must call it."""
        assert isinstance(update, Update)
        share = 0.0
        with torch.no_grad():
            for item in update.micro_batches:
                output = self.compute_loss(item.batch.to(self.policy.device))
                share += float(total(output, update.denominators)) if item.counts else 0.0
        return share

    def compute_loss(self, batch: Batch) -> LossOutput:
        """Computes the unreduced loss of a micro-batch."""
        rows = self.model(batch.sequences)
        reference = self.reference_scores(batch)

        def loss_of(output: Tensor) -> LossOutput:
            return self.loss(self.policy.score(output, batch), batch.labels, reference, **self.loss_arguments())

        output = matryoshka(loss_of, rows, self.loss.matryoshka)
        return output if self.regularisation is None else self.regularisation.added(output, rows.float(), batch)

    # These methods are the loop.

    def train(self) -> Mapping[str, float]:
        """Trains to the end, from the newest checkpoint if any, and returns the metrics of the FINAL weights."""
        self.policy.train()
        self.loader.continue_from(self.state.stream)
        ahead = UpdatesAhead(self.prepare, self.total_steps, transfer_to(self.policy.device))
        try:
            self.watch.start(self.baseline, self.schedule.remark(self.total_steps))
            recorded = profiled(self.settings.profile_updates, self.watch.run.folder, self.logger)
            with noticed() as notice, explained(self.memory, self.settings.token_budget), recorded as after_update:
                while self.state.step < self.total_steps and not self.state.stopped:
                    self.train_step(ahead.get(self.state.step))
                    after_update()
                    self.watch.after_step()
                    self.watch.heed(notice)
                return self.finish()  # Saving on a signal that arrives now would take as long as finishing.
        finally:
            ahead.close()
            self.logger.finish()

    def train_step(self, update: Prepared) -> None:
        """Runs one step: every pass over the update, and then the counters and the loss's state."""
        started = time.perf_counter()
        factor = self.schedule.factor(self.state.step, self.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.seed()
        update = self.begin(update)
        self.observed.clear()
        for _ in range(self.num_passes):
            self._optimize(update)
        self.next_loss_state(update.num_queries)
        self._check_sparsity()
        self.state.step += 1
        if self.average is not None:
            self.average.update(self.state.step)
        self.state.stream = self.loader.position(self.state.step)
        self.state.tokens += update.num_tokens
        self.state.queries += update.num_queries
        self.logger.tick(self.state.step, update.num_tokens, time.perf_counter() - started)

    def _optimize(self, update: Prepared) -> None:
        """Runs one pass over the update: gradient, clipping, optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.values.clear()
        self.backward(update)
        norm = self.clip()
        if not (self.losses_are_finite() and (math.isfinite(norm) or self.strategy.scaler_will_skip())):
            raise NonFiniteError.of(self.state.step + 1, update.ids)
        self.strategy.step()
        if math.isfinite(norm):  # fp16's gradient scaler skips updates with a non-finite norm.
            self.running.add("grad_norm", torch.tensor(norm))
        self.running.end_update()

    def finish(self) -> Mapping[str, float]:
        """Writes FINAL and returns the metrics of its weights."""
        metrics = self.watch.finish()
        weights = self.strategy.plain_weights()
        if weights is None:
            # The check after saving compares with a float32 forward pass, so autocast must be off.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.save_final(self.policy, {"before": self.state.start_metrics, "after": metrics}, weights)
        for callback in self.watch.told:
            callback.ended(self.watch.run, metrics)
        return metrics
