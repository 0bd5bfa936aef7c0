"""Jobs as separate processes, started by accelerate launch, or by torchrun on CPUs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from rankpo.config.places import PROGRAM, accelerate_file
from rankpo.errors import ConfigError
from rankpo.runs.logger import MetricsLogger
from rankpo.sweeps.folder import config_hash, is_finished, job_folder, read_note, write_job
from rankpo.sweeps.names import varied

LOG_FILE = "launch.log"
SHOWN_LINES = 5  # Number of printed lines of a failed job's log.
POLL_SECONDS = 0.2


class JobsFailed(RuntimeError):
    """Raised at the end of a sweep, with the names of the jobs that failed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One config of a sweep. overrides: all overrides. changes: its varied overrides. folder: its run directory."""

    overrides: list[str]
    changes: list[str]
    name: str
    folder: Path
    digest: str
    config: DictConfig
    overwrite: bool = False

    @classmethod
    def of(cls, overrides: Sequence[str], composed: DictConfig) -> Job:
        """A job from its overrides and its composed config."""
        parent = Path(str(composed.run_dir))
        changes = varied(overrides, read_note(parent)["arguments"])
        folder = job_folder(parent, changes)
        return cls(
            overrides=[item for item in overrides if not item.startswith("run_dir=")],
            changes=changes,
            name=folder.name,
            folder=folder,
            digest=config_hash(composed),
            config=composed,
            overwrite=bool(composed.overwrite),
        )


class Overseer:
    """Observer of running and ended jobs, which may stop a job early."""

    def watch(self, job: Job) -> str | None:
        """Returns the reason to stop the job now, or None. The launcher polls it while the job runs."""
        return None

    def ended(self, job: Job) -> None:
        """Called after the job has ended, also in an earlier start. `sweep_job.json` has its state."""


@dataclass(frozen=True, kw_only=True)
class Launching:
    """The settings for starting jobs. Raises ConfigError for invalid values.

    config_file: the config file of accelerate; None starts one process. num_processes: None takes the number of the file.
    jobs_at_once: the number of parallel jobs. on_failure: `continue` with the other jobs, or `stop`.
    """

    config_file: str | None = None
    num_processes: int | None = None
    jobs_at_once: int = 1
    on_failure: str = "continue"

    def __post_init__(self) -> None:
        if self.jobs_at_once < 1:
            raise ConfigError([f"hydra.launcher.jobs_at_once must be >= 1, got {self.jobs_at_once}"])
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError([f"hydra.launcher.num_processes must be >= 1 or null, got {self.num_processes}"])
        if self.on_failure not in ("continue", "stop"):
            raise ConfigError([f"hydra.launcher.on_failure must be continue or stop, got {self.on_failure!r}"])
        command(self.config_file, self.num_processes)

    def run(self, jobs: Iterable[Job], total: int, overseer: Overseer | None = None) -> list[str]:
        """Runs all jobs that are not finished yet; returns the names of those that failed.

        jobs: a job is taken when another can start, so that a search uses all results so far. total: the largest number
        of jobs.
        """
        return _Runs(self, total, overseer or Overseer()).all(iter(jobs))


class _Runs:
    """The running jobs and the results of the others."""

    def __init__(self, settings: Launching, total: int, overseer: Overseer) -> None:
        self.settings = settings
        self.total = total
        self.overseer = overseer
        self.logger = MetricsLogger()
        self.program = command(settings.config_file, settings.num_processes)
        self.running: list[Started] = []
        self.failures: list[str] = []
        self.done = 0

    def all(self, source: Any) -> list[str]:
        open_ = True
        try:
            while open_ or self.running:
                while open_ and len(self.running) < self.settings.jobs_at_once:
                    job = next(source, None)
                    if job is None:
                        open_ = False
                    else:
                        self.begin(job)
                self.look()
                if self.failures and self.settings.on_failure == "stop":
                    open_ = False
        finally:
            for started in self.running:  # On an early exit, stop the remaining jobs.
                started.process.terminate()
        return self.failures

    def begin(self, job: Job) -> None:
        if is_finished(job.folder, job.digest, job.config, job.overrides) and not job.overwrite:
            self.done += 1
            self.logger.say(f"{job.name}: finished before ({self.done}/{self.total})")
            self.overseer.ended(job)
            return
        self.logger.say(f"{job.name}: started; its output is in {job.folder / LOG_FILE}")
        self.running.append(Started(job, self.program))

    def look(self) -> None:
        """Sleeps briefly if jobs run, then handles jobs that have ended or must stop."""
        if self.running:
            time.sleep(POLL_SECONDS)
        for started in list(self.running):
            job = started.job
            if started.process.poll() is None:
                if started.stopped is None and (reason := self.overseer.watch(job)) is not None:
                    started.stop(reason)
                continue
            self.running.remove(started)
            outcome, error = started.conclude()
            self.done += 1
            words = f"{outcome} after {started.seconds:.0f} s ({self.done}/{self.total})"
            self.logger.say(f"{job.name}: {words}{'' if error is None else f': {error}'}")
            if outcome == "failed":
                self.failures.append(job.name)
            self.overseer.ended(job)


class Started:
    """A job with running processes. stopped: the reason of its early stop, or None."""

    def __init__(self, job: Job, program: Sequence[str]) -> None:
        self.job = job
        self.stopped: str | None = None
        self.began = time.monotonic()
        self.noted: dict[str, object] = {"overrides": job.changes, "config": job.digest}
        write_job(job.folder, {**self.noted, "state": "running"})
        with (job.folder / LOG_FILE).open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                arguments(job, program),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # Windows refuses any such function.
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def stop(self, reason: str) -> None:
        """Asks the processes to end: they finish their update and write a checkpoint."""
        self.stopped = reason
        self.process.terminate()

    def conclude(self) -> tuple[str, str | None]:
        """Returns the outcome (finished, pruned, failed) and its reason, and writes both to the folder of the job."""
        code = self.process.returncode
        more: dict[str, object] = {"seconds": round(self.seconds, 1)}
        if code == 0:  # This includes a stop that came too late.
            write_job(self.job.folder, {**self.noted, "state": "finished", **more})
            return "finished", None
        if self.stopped is not None:
            write_job(self.job.folder, {**self.noted, "state": "pruned", "reason": self.stopped, **more})
            return "pruned", self.stopped
        error = (
            own_words((self.job.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")) or f"exit code {code}"
        )
        write_job(self.job.folder, {**self.noted, "state": "failed", "error": error, "exit_code": code, **more})
        return "failed", error


def arguments(job: Job, program: Collection[str]) -> list[str]:
    """Returns the command of a job, which resumes an earlier attempt."""
    resume = [] if job.overwrite or any(item.startswith("resume=") for item in job.overrides) else ["resume=auto"]
    run_dir = f"run_dir={quoted(job.folder)}"
    return [*program, *PROGRAM, *job.overrides, run_dir, *resume, *config_dirs(job.config)]


def config_dirs(composed: DictConfig) -> list[str]:
    """The --config-dir of the command that composed a config, which its jobs need too."""
    sources = OmegaConf.select(composed, "hydra.runtime.config_sources") or ()
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def own_words(log: str) -> str:
    """Returns the last lines of a job's output without torchrun's summary and repetitions."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    elastic = next((number for number, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
    return " | ".join(dict.fromkeys(lines[:elastic][-SHOWN_LINES:]))


def quoted(path: Path) -> str:
    """A path as the value of an override: Hydra's grammar reads commas and equals signs."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def command(config_file: str | None, num_processes: int | None) -> list[str]:
    """The launch command before the program. Raises ConfigError for a missing file.

    accelerate 1.15 starts one process for MULTI_CPU, regardless of num_processes, so torchrun is used on CPUs.
    """

    settings: dict[str, Any] = {}
    if config_file is not None:
        path = accelerate_file(config_file)
        if path is None:
            raise ConfigError([f"hydra.launcher.config_file={config_file}: no such file"])
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    count = num_processes or int(settings.get("num_processes", 1))
    plain = settings.get("distributed_type", "NO") in ("NO", "MULTI_CPU", "MULTI_GPU")
    if count == 1 and plain:
        return [sys.executable]
    if plain:  # torchrun starts one process per device as accelerate's own launcher does, on CPUs too
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(path)]
    return [*launcher, "--num_processes", str(count), "--main_process_port", "0"]


def _die_with_parent() -> None:
    """Makes Linux end this process if its sweep is killed, so that no orphan holds the lock of a run directory."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)


def require_all(failures: Collection[str], jobs: Collection[Job]) -> None:
    """Raises JobsFailed for jobs of a sweep that failed."""
    if failures:
        raise JobsFailed(
            f"{len(failures)} of {len(jobs)} jobs failed: {'; '.join(failures)}. The same command runs these again."
        )
