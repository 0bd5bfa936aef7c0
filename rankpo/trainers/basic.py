"""The one training loop. Subclasses say what the loss of a batch is; nothing else is theirs to change."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankpo.data.loaders.planner import plan
from rankpo.data.loaders.ranking import Group
from rankpo.data.random_keys import random_keys
from rankpo.errors import ConfigError
from rankpo.losses.matryoshka import matryoshka
from rankpo.runs import processes
from rankpo.runs.logger import RunningMetrics
from rankpo.runs.signals import Interrupted, Notice, noticed
from rankpo.trainers.baseline import Measure, measured
from rankpo.trainers.parts import Parts
from rankpo.trainers.settings import TrainerSettings
from rankpo.trainers.state import TrainerState, load_best, load_state, save_state
from rankpo.trainers.strategies.choose import make_strategy
from rankpo.trainers.update import Ahead, MicroBatch, Update, denominators, total
from rankpo.types import Batch, LossOutput

FIRST_UPDATES = 3  # in which a loss of exactly 0 is reported


class NonFiniteError(RuntimeError):
    """A loss or gradient that is NaN or infinite; nothing was updated or overwritten."""


class BasicTrainer:
    """train() → train_step(update) → backward(micro_batch) → compute_loss(batch)."""

    def __init__(self, settings: TrainerSettings, parts: Parts) -> None:
        self.settings = settings
        self.accelerator = parts.accelerator
        self.policy = parts.model  # the model itself; self.model is what its strategy made of it
        self.loss = parts.loss
        self.loader = parts.loader
        self.replay = parts.replay
        self.schedule = parts.schedule
        self.evaluators = parts.evaluators
        self.checkpoints = parts.checkpoints
        self.logger = parts.logger
        self.save_final = parts.save_final
        self.baseline = parts.baseline or measured
        self.reference = parts.reference
        if self.reference is not None:
            self.reference.autocast = parts.accelerator.autocast
        self.stored = parts.stored
        self.teacher = parts.teacher
        self.strategy = make_strategy(parts.accelerator, parts.model, parts.optimizer, settings.max_grad_norm)
        self.model: nn.Module = self.strategy.wrapped
        self.optimizer = self.strategy.optimizer
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = settings.total_steps(self.loader.updates_per_epoch)
        self.state = TrainerState(loss_state=self.loss.initial_state())
        self.running = RunningMetrics()
        self.observed = RunningMetrics()  # of the current update alone, for losses with a state
        self.finite_loss = True  # of this rank's part of the current update
        self.learning = False  # whether this rank has met a loss other than 0
        self.saved_step: int | None = None
        try:
            self.schedule.check(self.total_steps)
            self.check()
        except ValueError as error:  # of a combination of keys that only loss, data and trainer together show
            raise ConfigError([str(error)]) from error

    # what subclasses may override

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
        made = []
        for part in parts:
            chosen = [groups[index] for index in (part if len(part) else cheapest)]
            made.append(MicroBatch(self.collate(chosen), counts=bool(len(part))))
        return made

    def collate(self, groups: Sequence[Group]) -> Batch:
        return self.policy.inputs.collate(self.loader.table, groups, reference=self.stored)

    def backward(self, update: Any, last: bool = True) -> None:
        """Adds the gradient of the whole update; gradients are synchronised once, at the end, if `last`."""
        for number, item in enumerate(update.micro_batches):
            final = last and number == len(update.micro_batches) - 1
            with nullcontext() if final else self.no_sync():
                output = self.compute_loss(item.batch.to(self.policy.device))
                value = total(output, update.denominators)
                weight = processes.world_size() if item.counts else 0.0
                # torch.where keeps a NaN of an uncounted batch out; 0 · NaN would not
                self.strategy.backward(value * weight if weight else torch.nan_to_num(value) * 0)
                self.record(
                    output, float(value.detach()) if item.counts else 0.0, update.denominators, counts=item.counts
                )

    def compute_loss(self, batch: Batch) -> LossOutput:
        """The loss of a micro-batch, not reduced."""
        embeddings = self.model(batch.sequences)  # [N, D]
        reference = None
        if "reference" in self.loss.needs and self.reference is not None:
            reference = self.reference.scores(batch)

        def loss_of(vectors: Tensor) -> LossOutput:
            return self.loss(self.policy.score(vectors, batch), batch.labels, reference, **self.loss_arguments())

        return matryoshka(loss_of, embeddings, self.loss.matryoshka)

    def loss_arguments(self) -> Mapping[str, Any]:
        """Keyword arguments of the loss that are the same for the whole update."""
        return {"state": self.state.loss_state} if self.state.loss_state else {}

    def begin(self, update: Any) -> Any:
        """The update with what must be known of all of it, on all ranks, before its first backward pass."""
        return update

    @property
    def num_passes(self) -> int:
        """Optimizer steps on each update; all of them are one step of the run."""
        return 1

    # what they may not

    def train(self) -> Mapping[str, float]:
        """Runs to the end (or continues from `resume()`); returns the metrics of the weights in FINAL."""
        self.policy.train()
        fresh = self.state.step == 0 and self.state.start_metrics is None
        self.logger.start(self.total_steps, self.state.step, afresh=fresh)
        if remark := self.schedule.remark(self.total_steps):
            self.logger.say(remark)
        ahead = Ahead(self.prepare, self.total_steps)
        try:
            if fresh and self.settings.eval_at_start:
                self.evaluate(self.baseline)
            with noticed() as notice:
                while self.state.step < self.total_steps and not self.state.stopped:
                    self.train_step(ahead.get(self.state.step))
                    self.after_step()
                    self.heed(notice)
                return self.finish()  # a signal that comes now would only cost what is nearly done
        finally:
            ahead.close()
            self.logger.finish()

    def train_step(self, update: Any) -> None:
        started = time.perf_counter()
        factor = self.schedule.factor(self.state.step, self.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self._seed()
        update = self.begin(update)
        self.observed = RunningMetrics()
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
        if not (self.finite_loss and (math.isfinite(norm) or self._scaler_will_skip())):
            self._refuse(update)
        self.strategy.step()
        if math.isfinite(norm):  # an update that fp16's scaler leaves out has none
            self.running.add("grad_norm", torch.tensor(norm))
        self.running.end_update()

    def clip(self) -> float:
        """The gradient norm over all parameters (and shards), clipped to max_grad_norm if that is set."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return self.strategy.clip(parameters, self.settings.max_grad_norm or math.inf)

    def no_sync(self) -> AbstractContextManager[None]:
        return self.strategy.no_sync()

    def record(
        self, output: LossOutput, value: float, sums: Mapping[str, float], prefix: str = "", counts: bool = True
    ) -> None:
        """Adds a micro-batch to the metrics of the current log line; an uncounted one only makes their names known."""
        self.finite_loss = self.finite_loss and math.isfinite(value)
        self.learning = self.learning or value != 0
        self.running.add_sum(f"{prefix}loss", value)
        metrics = dict(output.metrics)
        if output.terms:
            metrics[f"loss/{self.main_term}"] = output.losses
        metrics.update({f"loss/{name}": term.losses for name, term in output.terms.items() if sums.get(name)})
        for name, metric in metrics.items():
            values = metric if counts else metric.reshape(-1)[:0]
            self.running.add(f"{prefix}{name}", values)
            if self.state.loss_state:
                self.observed.add(f"{prefix}{name}", values)

    main_term = "preference"

    def after_step(self) -> None:
        step, per_epoch = self.state.step, self.loader.updates_per_epoch
        settings = self.settings
        last = step == self.total_steps
        if step == min(FIRST_UPDATES, self.total_steps) and not processes.any_rank(self.learning):
            self.logger.say(
                f"warning: the loss is exactly 0 in the first {step} updates: nothing is learned from them; look at "
                "data_report.json, at the loss and its margins, and at trainer.batch_size"
            )
        if step % settings.log_every == 0 or last:
            self.log()
        if settings.is_due(settings.eval_every, step, per_epoch) or (last and self.evaluators):
            self.evaluate()
        if self.state.stopped and step % settings.log_every and not last:
            self.log()
        if settings.is_due(settings.save_every, step, per_epoch) or settings.is_intermediate(step, per_epoch):
            self.save()

    def heed(self, notice: Notice) -> None:
        """Saves and raises Interrupted where any rank got a signal, unless the run is over anyway."""
        if not processes.any_rank(notice.signal is not None) or self.state.step == self.total_steps:
            return
        self.save()
        names = sorted({name for name in processes.gather_objects(notice.signal) if name})
        message = (
            f"{' and '.join(names)}: stopped after update {self.state.step} of {self.total_steps}, checkpoint written; "
            "the same command with resume=auto continues"
        )
        self.logger.say(message)
        processes.barrier()  # the launcher ends all processes once one of them is gone
        raise Interrupted(message)

    def log(self) -> None:
        metrics = self.running.result(processes.sum_over_ranks)
        self.running = RunningMetrics()
        rate = self.optimizer.param_groups[0]["lr"]
        epoch = self.state.step / self.loader.updates_per_epoch
        self.logger.log("train", self.state.step, {**metrics, "learning_rate": rate, "epoch": epoch})

    def evaluate(self, metrics_of: Measure = measured) -> Mapping[str, float]:
        """All evaluators on the current weights; updates the best metric and early stopping."""
        if not self.evaluators:
            return {}
        metrics = {}
        for evaluator in self.evaluators:
            values = metrics_of(evaluator, self.policy)
            metrics.update({f"{evaluator.name}/{name}": value for name, value in values.items()})
        if self.state.start_metrics is None:
            self.state.start_metrics = dict(metrics)
        self.state.last_metrics = dict(metrics)
        self.logger.log("eval", self.state.step, metrics)
        if self.settings.best_metric is not None:
            self._note_best(metric_value(metrics, self.settings.best_metric), metrics)
        return metrics

    def _note_best(self, value: float, metrics: Mapping[str, float]) -> None:
        state = self.state
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.without_gain = value, state.step, 0
            state.best_metrics = dict(metrics)
            if state.step > 0 or self.settings.final == "best":
                self.save()
        else:
            state.without_gain += 1
            patience = self.settings.patience
            if patience is not None and state.without_gain >= patience:
                self.logger.say(f"stopping early: no gain in {patience} evaluations; best at step {state.best_step}")
                state.stopped = True

    def save(self) -> None:
        """Writes a checkpoint of this step, once: it may be due and the best at the same time."""
        if self.saved_step != self.state.step:
            save_state(self)
            self.saved_step = self.state.step

    def resume(self) -> None:
        """Continues from the newest valid checkpoint, if there is one."""
        load_state(self)

    def finish(self) -> Mapping[str, float]:
        metrics = self.state.last_metrics
        if self.settings.final == "best" and self.state.best_step not in (None, self.state.step):
            self.logger.say(f"FINAL holds the best weights, of step {self.state.best_step}")
            load_best(self)
            metrics = self.state.best_metrics
        weights = self.strategy.plain_weights()
        if weights is None:
            # a mixed-precision forward pass would be compared with the folder's float32 one
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.save_final(self.policy, {"before": self.state.start_metrics, "after": metrics}, weights)
        return metrics or {}

    def _seed(self) -> None:
        """Dropout masks come from (seed, update, rank): nothing drawn before, by an evaluation say, moves them."""
        (key,) = random_keys(1, self.loader.seed, self.state.step, processes.rank())
        torch.manual_seed(int(key) >> 1)

    def _scaler_will_skip(self) -> bool:
        """In fp16 a scaled gradient may overflow: the scaler leaves the update out and halves its scale.

        Where halving has brought it below 1, the gradient itself is what overflows.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _refuse(self, update: Any) -> None:
        shown = ", ".join(update.ids[:8]) + (", …" if len(update.ids) > 8 else "")
        raise NonFiniteError(
            f"update {self.state.step + 1}: the loss or its gradient is not finite; examples {shown}. "
            "No weight or checkpoint was changed. Lower optimizer.lr, set trainer.precision=fp32 or look at the examples."
        )


def metric_value(metrics: Mapping[str, float], name: str) -> float:
    """The metric of that name, with or without the data set in front. Raises ValueError listing the valid names."""
    for key, value in metrics.items():
        if name in (key, key.split("/", 1)[1]):
            return value
    raise ValueError(f"trainer.best_metric={name} is not among {', '.join(sorted(metrics))}")
