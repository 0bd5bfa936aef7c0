"""Search: the trials of an Optuna study as jobs, independent of the launcher. This module needs optuna.

The storage holds all trials and results, and the same command continues from it. Values depend only on (seed, number of
the trial, results so far), so that an interrupted search with one job at a time gives the same jobs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from rankpo.data.random_keys import random_keys
from rankpo.errors import ConfigError
from rankpo.runs.logger import MetricsLogger
from rankpo.sweeps.curve import Curve
from rankpo.sweeps.distributions import any_of, distribution
from rankpo.sweeps.folder import find_metric, last_metrics, read_job
from rankpo.sweeps.jobs import Job, Overseer
from rankpo.sweeps.names import NOT_VARIED, canonical, canonical_range, key_of
from rankpo.sweeps.optuna import SearchSettings
from rankpo.sweeps.ranges import text_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

STUDY = "rankpo"
NOTE = "search"  # The attribute of the study with the searched ranges.


def open_storage(storage: str) -> BaseStorage:
    """A journal file, or a database by its URL."""
    if "://" in storage:
        return get_storage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


class Search(Overseer):
    """Trials of one study as jobs. make_job: makes a job from values by key. watched: whether jobs can be pruned.

    Raises ConfigError if the storage holds another search.
    """

    def __init__(
        self,
        settings: SearchSettings,
        ranges: Mapping[str, Override],
        make_job: Callable[[Mapping[str, str]], Job],
        *,
        watched: bool,
    ) -> None:
        storage = open_storage(settings.storage)
        if settings.pruning != "none" and not watched:
            raise ConfigError([f"search.pruning={settings.pruning} needs hydra/launcher=rankpo_accelerate"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings = settings
        self.space = {key: distribution(item) for key, item in ranges.items()}
        self.make_job = make_job
        self.say = MetricsLogger().say
        self.trials: dict[Path, list[Trial]] = {}  # Trials by job folder; equal values share a job.
        self.over: set[Path] = set()
        self.curves: dict[Path, Curve] = {}
        sample = make_job({key: text_of(any_of(value)) for key, value in self.space.items()})
        if sample.overwrite and STUDY in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=STUDY, storage=storage)
        self.study = optuna.create_study(
            study_name=STUDY,
            storage=storage,
            directions=list(settings.directions),  # type: ignore[arg-type]
            pruner=self._pruner(),
            load_if_exists=True,
        )
        self._refuse_another({key: str(item.get_value_string()) for key, item in ranges.items()}, sample)
        # The number of trials for this start; trials that failed before do not count.
        self.total = max(0, settings.num_trials - len(self._finished(optuna.trial.TrialState.PRUNED)))

    def _pruner(self) -> BasePruner:
        if self.settings.pruning == "none":
            return NopPruner()
        return MedianPruner(self.settings.pruning_trials, n_warmup_steps=self.settings.pruning_steps)

    def _refuse_another(self, ranges: Mapping[str, str], sample: Job) -> None:
        """Stores the searched ranges, or compares them with those of an earlier start."""
        common = [item for item in sample.overrides if item not in sample.changes]
        now = {
            "ranges": {key: canonical_range(text) for key, text in ranges.items()},
            "metric": self.settings.metrics,
            "direction": self.settings.directions,
            "overrides": sorted(canonical(item) for item in common if key_of(item) not in NOT_VARIED),
        }
        before = self.study.user_attrs.get(NOTE)
        if before is None:
            self.study.set_user_attr(NOTE, now)
            return
        before = {  # Earlier versions stored the words of the command line.
            **before,
            "ranges": {key: canonical_range(text) for key, text in before["ranges"].items()},
            "overrides": sorted(canonical(item) for item in before["overrides"] if key_of(item) not in NOT_VARIED),
        }
        if different := [f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]:
            raise ConfigError(
                [
                    f"{self.settings.storage} holds a search with other {'; '.join(different)}; set overwrite=true to "
                    "start again, or another exp_name"
                ]
            )

    def _finished(self, *more: TrialState) -> list[FrozenTrial]:
        """Trials with a result, and those of further states."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, *more))

    def jobs(self) -> Iterator[Job]:
        """Yields a job per trial on demand, first the unfinished jobs of an earlier start."""
        for trial in self._asked():
            job = self.make_job({key: text_of(value) for key, value in trial.params.items()})
            of_job = self.trials.setdefault(job.folder, [])
            of_job.append(trial)
            if job.folder in self.over:
                self.ended(job)
            elif len(of_job) == 1:
                noted = read_job(job.folder)
                if noted is not None and noted["state"] == "pruned" and noted["config"] == job.digest:
                    self.ended(job)
                else:
                    yield job

    def _asked(self) -> Iterator[Trial]:
        trials = self.study.get_trials(deepcopy=False)
        left = [trial for trial in trials if trial.state == TrialState.RUNNING][: self.total]
        for trial in left:
            yield optuna.trial.Trial(self.study, trial._trial_id)
        known = [trial.params for trial in trials if trial.state != TrialState.FAIL]
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.params not in known:
                self.study.enqueue_trial(trial.params, skip_if_exists=False)
                known.append(trial.params)
        for _ in range(self.total - len(left)):
            # Each trial has its own sampler, so that a continued search does not repeat the draws of the first trials.
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            yield self.study.ask(self.space)

    def _sampler(self, number: int) -> object:
        seed = int(random_keys(1, self.settings.seed, number)[0]) >> 32  # NumPy's generator takes 32 bits.
        if self.settings.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed, n_startup_trials=self.settings.startup_trials)

    def watch(self, job: Job) -> str | None:
        """Reports new evaluations to the pruner. Returns the reason to end the job, or None."""
        if self.settings.pruning == "none":
            return None
        trial = self.trials[job.folder][0]
        curve = self.curves.setdefault(job.folder, Curve(job.folder / "metrics.jsonl", self.settings.metrics[0]))
        for step, value in curve.news():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Continued jobs repeat known evaluations.
                trial.report(value, step)
            if trial.should_prune():
                return f"{curve.metric} {value:.4g} at update {step} is worse than the median"
        return None

    def ended(self, job: Job) -> None:
        """Reports the job's result to the study, for all trials with these values."""
        self.over.add(job.folder)
        noted = read_job(job.folder) or {"state": "failed"}
        values = self._values(job) if noted["state"] == "finished" else None
        for trial in self.trials[job.folder]:
            if self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                continue
            if values is not None:
                self.study.tell(trial, values)
            else:
                self.study.tell(trial, state=TrialState.PRUNED if noted["state"] == "pruned" else TrialState.FAIL)
            found = noted["state"] if values is None else ", ".join(f"{value:.4g}" for value in values)
            self.say(f"trial {trial.number + 1}: {job.name}: {found}")

    def _values(self, job: Job) -> list[float] | None:
        """The metrics of the job, or None if one is not a number. Raises ConfigError for a metric that no job has."""
        metrics = last_metrics(job.folder)
        values = []
        for name in self.settings.metrics:
            found = find_metric(name, metrics)
            if found is not None:
                values.append(float(metrics[found]))
            elif not self._finished():
                raise ConfigError([f"search.metric={name} is not among {', '.join(sorted(metrics)) or 'no metrics'}"])
        return values if len(values) == len(self.settings.metrics) and all(map(math.isfinite, values)) else None

    def close(self, failures: Sequence[str]) -> None:
        """Prints the best trials. Raises RuntimeError if no job of the search has finished."""
        if not self._finished():
            raise RuntimeError(f"no job of the search finished; failed: {'; '.join(failures) or 'see the table'}")
        for trial in self.study.best_trials:
            shown = " ".join(f"{key}={text_of(value)}" for key, value in trial.params.items())
            self.say(f"best: {shown} · {', '.join(f'{value:.4g}' for value in trial.values)}")
