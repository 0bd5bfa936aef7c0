"""Callback that registers every sweep with rankpo.sweeps.folder before its first job."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepNote(Callback):
    """Receives Hydra's call in the process that runs the sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from rankpo.sweeps.folder import begin

        begin(config)
