"""Callbacks of a training run: objects of the caller whose methods the run calls at its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Run:
    """The run that a callback observes. folder: the run directory. step: completed updates. total_steps: all updates."""

    folder: Path
    total_steps: int
    step: int = 0
    stopping: bool = field(default=False, init=False)

    def stop(self) -> None:
        """Ends the training after the current update. FINAL is written as usual."""
        self.stopping = True


class Callback:
    """The base class of callbacks. A subclass defines the methods that it needs. Only the first process calls them.

    An exception that a method raises ends the run.
    """

    def started(self, run: Run) -> None:
        """Called when training begins, or continues at `run.step`."""

    def logged(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Called every `trainer.log_every` updates. metrics: means of training metrics since the last log line."""

    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Called after an evaluation. metrics: metrics of eval_datasets, by DATASET/METRIC."""

    def saved(self, run: Run, folder: Path) -> None:
        """Called after a checkpoint was written to `folder`."""

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Called after FINAL was written. metrics: metrics of its weights on eval_datasets."""
