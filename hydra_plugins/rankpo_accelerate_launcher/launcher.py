"""Launcher hydra/launcher=rankpo_accelerate: starts every job of a sweep with the requested number of processes.

A fresh launch per job, because one process group that lives through all of them mixes gradients of two configs after a
failure on one rank (measured).
"""

# Without `from __future__ import annotations`: Hydra runs this module before it is in sys.modules, which dataclasses use.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class AccelerateLauncherConfig:
    """config_file: of accelerate; None for its default. num_processes: of each job, None for the file's.
    jobs_at_once: jobs that run side by side. on_failure: `continue` with the other jobs, or `stop`.
    metric: what the table is sorted by, such as jobs_dev/ndcg@20; None for trainer.best_metric.
    """

    _target_: str = "hydra_plugins.rankpo_accelerate_launcher.launcher.AccelerateLauncher"
    config_file: str | None = None
    num_processes: int | None = None
    jobs_at_once: int = 1
    on_failure: str = "continue"
    metric: str | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="rankpo_accelerate", node=AccelerateLauncherConfig, provider="rankpo"
)


class AccelerateLauncher(Launcher):
    """Runs the jobs of a sweep; each job's output goes to `launch.log` in its run directory."""

    def __init__(self, metric: str | None = None, **settings: Any) -> None:
        self.settings = settings  # rankpo.sweeps.folder records `metric` when a sweep begins.
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from rankpo.sweeps.jobs import Job, require_all

        assert self.config is not None and self.context is not None
        jobs = []
        for overrides in job_overrides:
            composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            jobs.append(Job.of([str(item) for item in overrides], composed))
        jobs = list({job.folder: job for job in jobs}.values())  # Equal values (1e-4, 0.0001) share a job.
        require_all(self.run(jobs, len(jobs)), jobs)
        return [
            JobReturn(overrides=job.overrides, cfg=self.config, working_dir=str(job.folder), status=JobStatus.COMPLETED)
            for job in jobs
        ]

    def run(self, jobs: Iterable[Any], total: int, overseer: Any = None) -> list[str]:
        """`rankpo.sweeps.jobs.Launching.run` with this launcher's settings."""
        from rankpo.sweeps.jobs import Launching

        return Launching(**self.settings).run(jobs, total, overseer)
