"""Watch over a run: logging, evaluation, the best metric, checkpoints and early stopping between updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rankpo.evaluation.base import Evaluator
from rankpo.evaluation.means import with_means
from rankpo.models.base import RankingModel
from rankpo.runs import processes
from rankpo.runs.callbacks import Callback, Run
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.running import RunningMetrics
from rankpo.runs.signals import Interrupted, Notice
from rankpo.trainers.baseline import Measure, measured
from rankpo.trainers.settings import TrainerSettings
from rankpo.trainers.state import Keeper, TrainerState

LOWER_IS_BETTER = ("loss", "perplexity")
FIRST_UPDATES = 3  # A loss of exactly 0 in all of these updates causes a warning.


@dataclass(kw_only=True)
class Watch:
    """The work between two updates of a run.

    state, running: the trainer's objects, which the watch modifies. keeper: writes and reads checkpoints.
    learning_rate: returns the rate of the first parameter group. updates_per_epoch, total_steps: in updates. callbacks:
    called on the first rank. learning: whether this rank has seen a non-zero loss.
    """

    settings: TrainerSettings
    policy: RankingModel
    evaluators: Sequence[Evaluator]
    logger: MetricsLogger
    keeper: Keeper
    state: TrainerState
    running: RunningMetrics
    learning_rate: Callable[[], float]
    updates_per_epoch: int
    total_steps: int
    callbacks: Sequence[Callback] = ()
    learning: bool = False
    saved_step: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.run = Run(folder=self.keeper.store.folder.parent, total_steps=self.total_steps)

    @property
    def told(self) -> Sequence[Callback]:
        """The callbacks on the first rank, with the run's step set; none on the others."""
        self.run.step = self.state.step
        return self.callbacks if self.logger.main else ()

    def start(self, baseline: Measure, remark: str | None) -> None:
        """Starts the log and, in a fresh run, evaluates the start model. remark: a line to print, or None."""
        fresh = self.state.step == 0 and self.state.start_metrics is None
        self.logger.start(self.total_steps, self.state.step, afresh=fresh, every=self.settings.log_every)
        if remark:
            self.logger.say(remark)
        for callback in self.told:
            callback.started(self.run)
        if fresh and self.settings.eval_at_start:
            self.evaluate(baseline)

    def after_step(self) -> None:
        """Logs, evaluates and saves if due after the current update."""
        step, settings, per_epoch = self.state.step, self.settings, self.updates_per_epoch
        last = step == self.total_steps
        if step == min(FIRST_UPDATES, self.total_steps):
            self._warn_of_zero_loss()
        if step % settings.log_every == 0 or last:
            self.log()
        if settings.is_due(settings.eval_every, step, per_epoch) or (last and self.evaluators):
            self.evaluate()
        if self.state.stopped and step % settings.log_every and not last:
            self.log()
        if settings.is_due(settings.save_every, step, per_epoch) or settings.is_intermediate(step, per_epoch):
            self.save()
        if self.callbacks and processes.any_rank(self.run.stopping):
            self.state.stopped = True

    def _warn_of_zero_loss(self) -> None:
        if not processes.any_rank(self.learning):
            self.logger.say(
                f"warning: the loss is exactly 0 in the first {self.state.step} updates, which have no training signal; "
                "check data_report.json, the loss and its margins, and trainer.batch_size"
            )

    def heed(self, notice: Notice) -> None:
        """Saves and raises Interrupted if any rank received a signal, unless the run has reached its end."""
        if not processes.any_rank(notice.signal is not None) or self.state.step == self.total_steps:
            return
        self.save()
        names = sorted({name for name in processes.gather_objects(notice.signal) if name})
        message = (
            f"{' and '.join(names)}: stopped after update {self.state.step} of {self.total_steps}, checkpoint written; "
            "the same command with resume=auto continues"
        )
        self.logger.say(message)
        processes.barrier()  # The launcher terminates all processes when the first one exits.
        raise Interrupted(message)

    def log(self) -> None:
        """Writes the metrics' means over the updates since the last log line."""
        metrics = self.running.result(processes.sum_over_ranks)
        self.running.clear()
        epoch = self.state.step / self.updates_per_epoch
        metrics = {**metrics, "learning_rate": self.learning_rate(), "epoch": epoch}
        self.logger.log("train", self.state.step, metrics)
        for callback in self.told:
            callback.logged(self.run, metrics)

    def evaluate(self, metrics_of: Measure = measured) -> Mapping[str, float]:
        """Runs all evaluators on the current weights and updates the best metric and early stopping."""
        if not self.evaluators:
            return {}
        metrics: dict[str, float] = {}
        with self.keeper.evaluated_weights():
            for evaluator in self.evaluators:
                values = metrics_of(evaluator, self.policy)
                metrics.update({f"{evaluator.name}/{name}": value for name, value in values.items()})
        metrics = with_means(metrics, self.evaluators)
        if self.state.start_metrics is None:
            self.state.start_metrics = dict(metrics)
        self.state.last_metrics = dict(metrics)
        self.logger.log("eval", self.state.step, metrics)
        for callback in self.told:
            callback.evaluated(self.run, metrics)
        if self.settings.best_metric is not None:
            self._note_best(metric_value(metrics, self.settings.best_metric), metrics)
        return metrics

    def _note_best(self, value: float, metrics: Mapping[str, float]) -> None:
        state = self.state
        lower = str(self.settings.best_metric).rpartition("/")[2] in LOWER_IS_BETTER
        if state.best_value is None or (value < state.best_value if lower else value > state.best_value):
            state.best_value, state.best_step, state.without_gain = value, state.step, 0
            state.best_metrics = dict(metrics)
            if state.step > 0 or self.settings.final == "best":
                self.save()
            return
        state.without_gain += 1
        patience = self.settings.patience
        if patience is not None and state.without_gain >= patience:
            self.logger.say(f"stopping early: no gain in {patience} evaluations; best at step {state.best_step}")
            state.stopped = True

    def save(self) -> None:
        """Writes a checkpoint of this step once, even if it is both due and the best."""
        if self.saved_step != self.state.step:
            self.keeper.save(self.state, self.running)
            self.saved_step = self.state.step
            for callback in self.told:
                callback.saved(self.run, self.keeper.store.folder / f"step-{self.state.step}")

    def resume(self) -> None:
        """Continues from the newest valid checkpoint, if there is one."""
        path = self.keeper.load(self.state, self.running, self.logger.say)
        if path is not None:
            self.logger.say(f"continuing from {path}")

    def finish(self) -> Mapping[str, float]:
        """Loads the weights of FINAL into the model and returns their metrics."""
        metrics = self.state.last_metrics
        if self.settings.final == "best" and self.state.best_step not in (None, self.state.step):
            self.logger.say(f"FINAL holds the best weights, of step {self.state.best_step}")
            self.keeper.load_best(self.state)
            metrics = self.state.best_metrics
        else:
            self.keeper.use_average()
        return metrics or {}


def metric_value(metrics: Mapping[str, float], name: str) -> float:
    """Returns the metric `name`, with or without the dataset prefix. Raises ValueError with the valid names."""
    for key, value in metrics.items():
        if name in (key, key.split("/", 1)[1]):
            return value
    raise ValueError(f"trainer.best_metric={name} is not among {', '.join(sorted(metrics))}")
