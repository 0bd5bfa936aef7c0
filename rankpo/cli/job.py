"""Jobs: check and run of one composed config. This module imports heavy modules, so it is imported after composition."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from rankpo.config import check, experiment
from rankpo.runs import submitit
from rankpo.sweeps.in_process import in_sweep


def run(config: DictConfig, overrides: Sequence[str]) -> None:
    """Checks the config and runs its task. Raises ConfigError for an invalid config."""
    experiment.run(check.check(config, overrides=overrides))


def run_in_sweep(config: DictConfig, overrides: Sequence[str]) -> None:
    """Runs one job of a sweep, also as one of several processes that submitit starts."""
    submitit.join()
    in_sweep(config, overrides, experiment.run)
