"""Checkpoints of a run: folders named by their update, written atomically."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.storage.folders import damage, recover, written_whole
from rankpo.storage.json_files import read_json, write_json

NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder. step: the number of completed updates."""

    path: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.path / "state.json")


class CheckpointStore:
    """The checkpoints of one run: `run_dir`/checkpoints/step-N."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"

    def clean(self) -> None:
        """Cleans up after an interrupted write."""
        for name in {path.name.split(".")[0] for path in self.folder.glob("step-*.*-*")}:
            recover(self.folder / name)

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, object]) -> Checkpoint:
        """Writes step-N with the files that `write` creates in the folder, and `state` as JSON."""
        with written_whole(self.folder / f"step-{step}") as folder:
            write(folder)
            write_json(folder / "state.json", state, indent=None)
        return Checkpoint(self.folder / f"step-{step}", step)

    def list(self) -> list[Checkpoint]:
        """Returns all checkpoints by step, valid or damaged. Files, and folders with other names, are not ours."""
        named = [(path, NAME.fullmatch(path.name)) for path in self.folder.glob("step-*") if path.is_dir()]
        found = [Checkpoint(path, int(match.group(1))) for path, match in named if match is not None]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def newest_valid(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Returns the newest undamaged checkpoint; reports and skips damaged ones."""
        for checkpoint in reversed(self.list()):
            fault = damage(checkpoint.path)
            if fault is None:
                return checkpoint
            say(f"{checkpoint.path} is damaged ({fault}); looking at the one before")
        return None

    def keep(self, step: int, newest: int, others: Collection[int] = ()) -> None:
        """Removes all checkpoints except the `newest` ones up to `step` and those of the steps in `others`.

        Checkpoints after `step` are removed, because the run skipped them as damaged, and a damaged checkpoint must not
        count as one of the newest.
        """
        present = self.list()
        past = [checkpoint for checkpoint in present if checkpoint.step <= step]
        for checkpoint in [*past[:-newest], *present[len(past) :]]:
            if checkpoint.step not in others or checkpoint.step > step:
                shutil.rmtree(checkpoint.path)
