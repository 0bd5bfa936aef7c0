"""Threads of a forward pass on a CPU: parts of the work in threads of their own, in place of threads within operations.

torch divides each operation over its threads, and they wait for each other after each. Parts in threads of their own
wait for nothing, which helps most on a machine that other programs use too.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # Threads, since each holds the intermediate results of its own part.


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], several: bool = True) -> Iterator[Result]:
    """Yields work(item) of all items, in their order, computed in as many threads as torch uses, at most 8.

    several: False computes them in the thread of the caller. Each thread has its share of torch's threads, the gradient mode and the autocast of the caller. The results do not
    depend on the number of threads beyond the last digits of operations that torch divides.
    """
    whole = torch.get_num_threads()
    threads = min(whole, MOST, len(items)) if several else 1
    if threads <= 1:
        yield from map(work, items)
        return
    mode = _Mode.now()
    waiting: deque[Future[Result]] = deque()
    torch.set_num_threads(whole // threads)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="forward")
    try:
        for item in items:
            waiting.append(pool.submit(contextvars.copy_context().run, mode.run, work, item))
            if len(waiting) > 2 * threads:  # This bounds the memory of results that wait for earlier ones.
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(whole)


@dataclass(frozen=True)
class _Mode:
    """Settings that torch keeps for each thread."""

    gradient: bool
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def now(cls) -> _Mode:
        return cls(torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))

    def run(self, work: Callable[[Item], Result], item: Item) -> Result:
        with torch.set_grad_enabled(self.gradient), torch.autocast("cpu", self.dtype, enabled=self.autocast):
            return work(item)
