"""Starting jobs as processes of their own: accelerate launch where it works, torchrun where it silently does not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rankpo.config_errors import ConfigError
from rankpo.metrics import MetricsLogger
from rankpo.sweep import close, config_hash, is_finished, job_name, varied, write_job

ROOT = Path(__file__).resolve().parents[1]
LOG_FILE = "launch.log"
SHOWN_LINES = 5  # of a failed job's log


@dataclass(frozen=True, kw_only=True)
class Job:
    """One config of a sweep. overrides: all of them; changes: those in which it differs; folder: its run
    directory; metric: its trainer.best_metric, by which the sweep's table is sorted.
    """

    overrides: list[str]
    changes: list[str]
    name: str
    folder: Path
    digest: str
    metric: str | None = None

    @classmethod
    def of(cls, overrides: list[str], composed: Any) -> Job:
        """A job from its overrides and its composed config."""
        changes = varied(overrides, sys.argv[1:])
        name = job_name(changes)
        return cls(
            overrides=[item for item in overrides if not item.startswith("run_dir=")],
            changes=changes,
            name=name,
            folder=Path(str(composed.run_dir)) / name,
            digest=config_hash(composed),
            metric=OmegaConf.select(composed, "trainer.best_metric"),
        )


def run_jobs(
    jobs: Sequence[Job],
    *,
    config_file: str | None = None,
    num_processes: int | None = None,
    jobs_at_once: int = 1,
    on_failure: str = "continue",
    metric: str | None = None,
) -> None:
    """Runs all jobs that are not finished yet, then shows and writes their table, also after failures.

    Raises ConfigError for settings that cannot work, RuntimeError at the end if a job failed.
    """
    program = command(config_file, num_processes)
    if jobs_at_once < 1:
        raise ConfigError([f"hydra.launcher.jobs_at_once must be >= 1, got {jobs_at_once}"])
    if on_failure not in ("continue", "stop"):
        raise ConfigError([f"hydra.launcher.on_failure must be continue or stop, got {on_failure!r}"])
    logger = MetricsLogger()
    failures: list[str] = []
    waiting = []
    for job in jobs:
        if is_finished(job.folder, job.digest):
            logger.say(f"{job.name}: finished before")
        else:
            waiting.append(job)
    done = len(jobs) - len(waiting)
    with ThreadPoolExecutor(max_workers=jobs_at_once) as pool:
        running: dict[Future[str | None], Job] = {}
        while waiting or running:
            while waiting and len(running) < jobs_at_once:
                job = waiting.pop(0)
                logger.say(f"{job.name}: started; its output is in {job.folder / LOG_FILE}")
                running[pool.submit(run_job, job, program)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                error = future.result()
                done += 1
                logger.say(f"{job.name}: {'finished' if error is None else 'failed: ' + error} ({done}/{len(jobs)})")
                if error is not None:
                    failures.append(job.name)
                    if on_failure == "stop":
                        waiting.clear()
    close(jobs[0].folder.parent, metric or jobs[0].metric, logger.table)
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(jobs)} jobs failed: {'; '.join(failures)}. The same command runs these again."
        )


def run_job(job: Job, program: Sequence[str]) -> str | None:
    """Runs one job to its end; None, or the end of its log where it failed."""
    noted: dict[str, Any] = {"overrides": job.changes, "config": job.digest}
    write_job(job.folder, {**noted, "state": "running"})
    started = time.monotonic()
    resume = [] if any(item.startswith(("resume=", "overwrite=")) for item in job.overrides) else ["resume=auto"]
    arguments = [*program, str(ROOT / "launch.py"), *job.overrides, f"run_dir={quoted(job.folder)}", *resume]
    with (job.folder / LOG_FILE).open("w") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent)
        code = process.wait()
    seconds = round(time.monotonic() - started, 1)
    if code == 0:
        write_job(job.folder, {**noted, "state": "finished", "seconds": seconds})
        return None
    error = own_words((job.folder / LOG_FILE).read_text(errors="replace")) or f"exit code {code}"
    write_job(job.folder, {**noted, "state": "failed", "seconds": seconds, "error": error, "exit_code": code})
    return error


def own_words(log: str) -> str:
    """The end of what a job's processes said, without what torchrun adds about their end; equal lines once."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    elastic = next((number for number, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
    return " | ".join(dict.fromkeys(lines[:elastic][-SHOWN_LINES:]))


def quoted(path: Path) -> str:
    """A path as the value of an override: Hydra's grammar reads commas and equals signs."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def command(config_file: str | None, num_processes: int | None) -> list[str]:
    """What to put in front of launch.py. Raises ConfigError for a file that is not there.

    accelerate 1.15 starts one process for MULTI_CPU, whatever is asked for: on CPUs torchrun is taken instead.
    """
    import yaml

    settings: dict[str, Any] = {}
    if config_file is not None:
        path = Path(config_file)
        if not path.is_file():
            raise ConfigError([f"hydra.launcher.config_file={config_file}: no such file"])
        settings = yaml.safe_load(path.read_text()) or {}
    count = num_processes or int(settings.get("num_processes", 1))
    plain = settings.get("distributed_type", "NO") in ("NO", "MULTI_CPU", "MULTI_GPU")
    if count == 1 and plain:
        return [sys.executable]
    if plain:  # torchrun starts one process per device as accelerate's own launcher does, on CPUs too
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config_file)]
    return [*launcher, "--num_processes", str(count), "--main_process_port", "0"]


def _die_with_parent() -> None:
    """Asks Linux to end this process if the sweep that started it is killed: no orphan may hold a run directory."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() == 1:
            os._exit(1)
