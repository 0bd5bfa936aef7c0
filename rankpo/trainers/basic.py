"""The training loop. Subclasses say what the loss of a batch is; the loop itself is the same for all."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

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
from rankpo.trainers.parts import Parts
from rankpo.trainers.update import Ahead, MicroBatch, NonFiniteError, Update
from rankpo.types import Batch, LossOutput


class BasicTrainer(Parts):
    """train() → train_step(update) → backward(micro_batch) → compute_loss(batch)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.schedule.check(self.total_steps)
            self.check()
        except ValueError as error:  # of a combination of keys that only loss, data and trainer together show
            raise ConfigError([str(error)]) from error

    # Subclasses may override these.

    def check(self) -> None:
        """Raises ValueError for a loss or data that this trainer cannot train."""

    def prepare(self, step: int) -> Any:
        """This rank's work for update `step`: runs in a thread, ahead of time, and depends on `step` alone."""
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
        """This rank's share of the groups, cut under max_tokens."""
        costs = self.policy.inputs.costs(self.loader.table, groups)
        parts = plan(costs, processes.world_size(), self.settings.max_tokens)[processes.rank()]
        cheapest = np.array([int(costs.argmin())])
        chosen = [[groups[index] for index in (part if len(part) else cheapest)] for part in parts]
        return [MicroBatch(self.collate(own), bool(len(part))) for own, part in zip(chosen, parts, strict=True)]

    def collate(self, groups: Sequence[Group]) -> Batch:
        return self.policy.inputs.collate(self.loader.table, groups, reference=self.stored)

    def begin(self, update: Any) -> Any:
        """The update with what must be known of all of it, on all ranks, before its first backward pass."""
        return update

    @property
    def num_passes(self) -> int:
        """Optimizer steps on each update; all of them are one step of the run."""
        return 1

    def backward(self, update: Any, last: bool = True) -> None:
        """Adds the gradient of the whole update; gradients are synchronised once, at the end, if `last`."""
        for number, item in enumerate(update.micro_batches):
            final = last and number == len(update.micro_batches) - 1
            with nullcontext() if final else self.no_sync():
                output = self.compute_loss(item.batch.to(self.policy.device))
                value = total(output, update.denominators)
                weight = processes.world_size() if item.counts else 0.0
                # nan_to_num keeps a NaN of an uncounted batch out; 0 · NaN would not.
                self.strategy.backward(value * weight if weight else torch.nan_to_num(value) * 0)
                own = float(value.detach()) if item.counts else 0.0
                self.record(output, own, update.denominators, counts=item.counts)

    def compute_loss(self, batch: Batch) -> LossOutput:
        """The loss of a micro-batch, not reduced."""
        rows = self.model(batch.sequences)
        reference = self.reference_scores(batch)

        def loss_of(output: Tensor) -> LossOutput:
            return self.loss(self.policy.score(output, batch), batch.labels, reference, **self.loss_arguments())

        return matryoshka(loss_of, rows, self.loss.matryoshka)

    def loss_arguments(self) -> Mapping[str, object]:
        """Keyword arguments of the loss that are the same for the whole update."""
        return {"state": self.state.loss_state} if self.state.loss_state else {}

    def clip(self) -> float:
        """The gradient norm over all parameters (and shards), clipped to max_grad_norm if that is set."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return self.strategy.clip(parameters, self.settings.max_grad_norm or math.inf)

    # The loop.

    def train(self) -> Mapping[str, float]:
        """Runs to the end (or continues from `watch.resume()`); returns the metrics of the weights in FINAL."""
        self.policy.train()
        ahead = Ahead(self.prepare, self.total_steps)
        try:
            self.watch.start(self.baseline, self.schedule.remark(self.total_steps))
            with noticed() as notice:
                while self.state.step < self.total_steps and not self.state.stopped:
                    self.train_step(ahead.get(self.state.step))
                    self.watch.after_step()
                    self.watch.heed(notice)
                return self.finish()  # a signal that comes now would only cost what is nearly done
        finally:
            ahead.close()
            self.logger.finish()

    def train_step(self, update: Any) -> None:
        """One step of the run: every pass over the update, and the counts that follow from it."""
        started = time.perf_counter()
        factor = self.schedule.factor(self.state.step, self.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.seed()
        update = self.begin(update)
        self.observed.clear()
        for _ in range(self.num_passes):
            self._optimize(update)
        if self.state.loss_state:
            means = self.observed.result(processes.sum_over_ranks)
            self.state.loss_state = self.loss.next_state(self.state.loss_state, means, update.num_queries)
        self.state.step += 1
        self.state.tokens += update.num_tokens
        self.state.queries += update.num_queries
        self.logger.tick(self.state.step, update.num_tokens, time.perf_counter() - started)

    def _optimize(self, update: Any) -> None:
        """One pass over the update: gradient, clip, optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.finite_loss = True
        self.backward(update)
        norm = self.clip()
        if not (self.finite_loss and (math.isfinite(norm) or self.strategy.scaler_will_skip())):
            raise NonFiniteError.of(self.state.step + 1, update.ids)
        self.strategy.step()
        if math.isfinite(norm):  # an update that fp16's scaler leaves out has none
            self.running.add("grad_norm", torch.tensor(norm))
        self.running.end_update()

    def finish(self) -> Mapping[str, float]:
        """Writes FINAL; returns the metrics of its weights."""
        metrics = self.watch.finish()
        weights = self.strategy.plain_weights()
        if weights is None:
            # A mixed-precision forward pass would be compared with the folder's float32 one.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.save_final(self.policy, {"before": self.state.start_metrics, "after": metrics}, weights)
        return metrics
