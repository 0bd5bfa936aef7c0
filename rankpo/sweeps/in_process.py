"""Jobs of a sweep that run one after the other in this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rankpo.config.check import check
from rankpo.errors import ConfigError
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.signals import REQUEUE, Interrupted
from rankpo.sweeps.folder import config_hash, is_finished, job_folder, read_job, read_note, write_job
from rankpo.sweeps.names import varied


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A job of a sweep in this process, which writes its state to its folder.

    changes: its varied overrides. digest: the hash of its config. main: whether this process writes for all ranks.
    """

    folder: Path
    changes: Sequence[str]
    digest: str
    main: bool
    started: float = field(default_factory=time.monotonic)

    def note(self, state: str, **more: str) -> None:
        """Writes the state and the seconds since the start."""
        seconds = round(time.monotonic() - self.started, 1)
        noted = {"overrides": self.changes, "config": self.digest, "state": state, "seconds": seconds}
        write_job(self.folder, {**noted, **more})

    def failed(self, error: Exception) -> None:
        """Notes an error, unless another process has noted its own. Ends a process that is not the main one."""
        if self.main and (read_job(self.folder) or {}).get("state") != "failed":
            self.note("failed", error=str(error))
        elif not self.main:  # Rank 0 only knows that it lost a rank. Exit code 1 makes Slurm end it too.
            self.note("failed", error=f"rank {os.environ['RANK']}: {error}")
            sys.exit(1)


def in_sweep(config: DictConfig, overrides: Sequence[str], run: Callable[..., None]) -> None:
    """Runs one job of a sweep in this process unless it is finished. Its varied overrides name its folder.

    Raises the errors of the job; the sweep continues with its other jobs unless a signal asked this process to end.
    """
    main = os.environ.get("RANK", "0") == "0"  # Slurm starts several processes.
    parent = Path(str(config.run_dir))
    changes = varied(overrides, read_note(parent)["arguments"])
    digest = config_hash(config)
    job = _Job(folder=job_folder(parent, changes), changes=changes, digest=digest, main=main)
    OmegaConf.update(config, "run_dir", str(job.folder))
    say = MetricsLogger(main=main).say
    if not config.overwrite and is_finished(job.folder, digest, config, overrides):
        say(f"{job.folder.name}: finished before")
        return
    if not config.overwrite:
        OmegaConf.update(config, "resume", "auto")
    say(f"\n{job.folder.name}")
    if main:
        job.note("running")
    try:
        run(check(config, overrides=overrides))
    except Interrupted:  # The run has reported it; the state stays.
        sys.exit(REQUEUE)
    except ConfigError as error:  # All ranks raise it, before collectives.
        if main:
            job.note("failed", error=str(error))
        raise
    except Exception as error:
        job.failed(error)
        raise
    if main:
        job.note("finished")
