"""Composition of a config from overrides, for launch.py and the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import open_dict

from rankpo.config.aliases import modern
from rankpo.config.check import check
from rankpo.config.places import CONFIG
from rankpo.config.run_folder import register

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rankpo.config.experiment import Experiment

register()


def compose(overrides: Sequence[str], change: Callable[[DictConfig], object] | None = None) -> Experiment:
    """A checked experiment from overrides, as in launch.py. Raises ConfigError, and Hydra's own errors.

    change: a function that modifies the composed config before the check.
    """

    given, notes = modern(overrides)
    for note in notes:
        sys.stderr.write(f"{note}\n")
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        config = hydra_compose("config", overrides=given)
    if change is not None:
        with open_dict(config):
            change(config)
    return check(config, given)
