"""The one entry point: compose the config, check it, run the task.

    accelerate launch launch.py loss=rankpo model=minilm datasets=[jobs] exp_name=first

Nothing heavy is imported before the config has been checked, so that --help and errors answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankpo.config_errors import ConfigError, explain, multirun_refusal


@hydra.main(version_base="1.3", config_path="config", config_name="config")
def compose_and_run(config: DictConfig) -> None:
    from rankpo.build import check, run

    hydra_config = HydraConfig.get()
    if hydra_config.mode == hydra.types.RunMode.MULTIRUN:
        OmegaConf.update(config, "run_dir", f"{config.run_dir}/{hydra_config.job.num}")
    try:
        experiment = check(config, overrides=list(hydra_config.overrides.task))
    except ConfigError as error:
        stop(error)
    run(experiment)


def stop(error: Exception) -> NoReturn:
    """Ends with the message alone: Hydra would put a line of its own before an exception."""
    sys.stderr.write(f"{error}\n")
    sys.exit(2)


def main() -> int:
    """Runs; returns the exit code: 0, or 2 for a config that cannot work, with one line for each thing to change."""
    refusal = multirun_refusal(sys.argv[1:], os.environ)
    if refusal:
        sys.stderr.write(f"{refusal}\n")
        return 2
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print a trace of its own instead of raising
    try:
        compose_and_run()
    except (HydraException, OmegaConfBaseException) as error:
        sys.stderr.write(f"{explain(error, sys.argv[1:])}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
