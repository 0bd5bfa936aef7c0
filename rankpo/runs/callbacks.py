"""Callbacks of a training run: objects of the caller that are told when something has happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Run:
    """The run that a callback is told of. folder: its run directory. step: updates done; total_steps: of the whole run."""

    folder: Path
    total_steps: int
    step: int = 0
    stopping: bool = field(default=False, init=False)

    def stop(self) -> None:
        """Ends the training after the current update; FINAL is written as at any other end."""
        self.stopping = True


class Callback:
    """Base of callbacks: a subclass defines the methods that it needs. Only the first process calls them.

    An exception that a method raises ends the run.
    """

    def started(self, run: Run) -> None:
        """Training begins, or continues at `run.step`."""

    def logged(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Metrics of training, means since the last log line: every `trainer.log_every` updates."""

    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Metrics of eval_datasets, by DATASET/METRIC."""

    def saved(self, run: Run, folder: Path) -> None:
        """A checkpoint was written to `folder`."""

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        """FINAL was written. metrics: of its weights on eval_datasets."""
