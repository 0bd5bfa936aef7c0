"""StreamLoader: updates of a dataset that is read as it comes, window by window.

A window is the next so many examples of the stream. It becomes a table of its own, is shuffled and dealt as a dataset
of that size would be, and its files go when two later windows are there: disk and memory hold a few windows, whatever
the size of the dataset. A text of one window is no known positive in another, and the order is random within a window
alone. Behind its end the stream starts again, in other random orders.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import xxhash

from rankpo.data.dataset import Dataset
from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.table import ExampleTable
from rankpo.types import Example

KEPT = 2  # Windows whose files stay beside that of the current update.
Position = Mapping[str, int]


@dataclass(frozen=True)
class Window:
    """Examples number · size and following of the stream's pass `epoch`, as a dataset."""

    stream: Dataset
    listed: Sequence[Example]
    epoch: int
    number: int
    size: int

    @property
    def name(self) -> str:
        return self.stream.name

    def fingerprint(self) -> str:
        """Its content, and its place: a later pass has files of its own, as those of an earlier one are removed."""
        return f"{self.epoch}-{self.number}-" + xxhash.xxh3_128_hexdigest("\n".join(map(repr, self.listed)).encode())

    def examples(self) -> Iterator[Example]:
        return iter(self.listed)


@dataclass(frozen=True)
class Opened:
    """A window with its loader and its first update."""

    window: Window
    loader: DataLoader
    first_step: int

    @property
    def end(self) -> int:
        """The first update behind the window."""
        return self.first_step + self.loader.updates_per_epoch


class StreamLoader:
    """The loader of a streamed dataset. open_window: makes the loader of a window, or None where it has no usable item.

    num_updates: of the whole run, which takes the place of an epoch. Raises ValueError where the stream holds nothing
    usable.
    """

    def __init__(
        self,
        stream: Dataset,
        size: int,
        num_updates: int,
        seed: int,
        open_window: Callable[[Window], DataLoader | None],
    ) -> None:
        self.stream, self.size, self.seed = stream, size, seed
        self.updates_per_epoch = num_updates
        self._open_window = open_window
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="window")
        self._opened: list[Opened] = []
        self._next: Future[tuple[Window, DataLoader]] | None = None
        self.continue_from({"epoch": 0, "window": 0, "first_step": 0})

    def continue_from(self, position: Position) -> None:
        """Goes to the window of a position that `position` has returned; {} stays at the beginning."""
        if not position:
            return
        if self._opened and self.position(self._opened[-1].first_step) == dict(position):
            return
        if self._next is not None:
            self._next.result()  # It reads the same stream.
        self._epoch, self._number = position["epoch"], position["window"]
        self._examples = self.stream.examples()
        skipped = sum(1 for _ in islice(self._examples, self._number * self.size))
        if skipped < self._number * self.size:
            raise ValueError(f"datasets.{self.stream.name}: the stream has only {skipped:,} examples now")
        self._opened = []
        self._next = self._pool.submit(self._read)
        self._advance(position["first_step"])

    def position(self, step: int) -> dict[str, int]:
        """Where update `step` begins its window: what a checkpoint keeps."""
        found = next((opened for opened in reversed(self._opened) if opened.first_step <= step), self._opened[0])
        window = found.window
        if step >= found.end:
            return {"epoch": window.epoch, "window": window.number + 1, "first_step": found.end}
        return {"epoch": window.epoch, "window": window.number, "first_step": found.first_step}

    @property
    def current(self) -> DataLoader:
        """The loader of the window of the latest update."""
        return self._opened[-1].loader

    @property
    def num_items(self) -> int:
        """The number of items of the current window."""
        return self.current.num_items

    @property
    def table(self) -> ExampleTable:
        return self.current.table

    @property
    def described(self) -> str:
        return f"a stream, shuffled in windows of {self.size:,} examples"

    def groups(self, step: int) -> list[Group]:
        """The groups of update `step`, which is that of the call before or a later one of its window, or of the next."""
        while step >= self._opened[-1].end:
            self._advance(self._opened[-1].end)
        opened = self._opened[-1]
        if step < opened.first_step:
            raise ValueError(f"update {step} is behind the window of the stream, which begins at {opened.first_step}")
        loader = opened.loader
        return loader.groups(opened.window.epoch * loader.updates_per_epoch + step - opened.first_step)

    def _advance(self, first_step: int) -> None:
        """Opens the next window, begins to read the one behind it, and removes the files of old ones."""
        assert self._next is not None
        window, loader = self._next.result()
        self._opened.append(Opened(window, loader, first_step))
        for old in self._opened[: -1 - KEPT]:
            remove(old.loader.table.folder)
        self._opened = self._opened[-1 - KEPT :]
        self._next = self._pool.submit(self._read)

    def _read(self) -> tuple[Window, DataLoader]:
        """The next window with usable items, of this pass over the stream or of the next."""
        usable = self._number > 0
        while True:
            listed = list(islice(self._examples, self.size))
            if not listed:
                if not usable:
                    raise ValueError(f"datasets.{self.stream.name}: the stream holds no usable example")
                self._epoch, self._number, usable = self._epoch + 1, 0, False
                self._examples = self.stream.examples()
                continue
            window = Window(self.stream, listed, self._epoch, self._number, self.size)
            self._number += 1
            if (loader := self._open_window(window)) is not None:
                return window, loader


def remove(folder: Path) -> None:
    """Removes a window's files; other processes may do the same, or have them open."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
