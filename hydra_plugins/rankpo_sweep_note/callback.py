"""Tells rankpo.sweeps.folder of every sweep before its first job, whatever sweeper and launcher it has."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepNote(Callback):
    """Called by Hydra in the process that drives the sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from rankpo.sweeps.folder import begin

        begin(config)
