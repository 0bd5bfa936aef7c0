"""LiveBytes: the memory of all tensors that operations create, counted operation by operation.

It counts real tensors and fake ones alike. A run under fake tensors shows the memory of a real run, but computes and
allocates nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside the block create, until they are freed.

    live: bytes in use now. peak: the most that were in use at once. existing: tensors made before the block, whose
    views and in-place results are not counted.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._existing = [tensor.untyped_storage() for tensor in existing]
        for storage in self._existing:
            self._known[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[object] = (),
        named: Mapping[str, object] | None = None,
    ) -> Any:
        result = operation(*arguments, **(named or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                for part in _dense(value):
                    self._count(part.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        known = self._known.get(id(storage))
        if known is not None and known() is storage:
            return
        size = storage.nbytes()
        self._known[id(storage)] = weakref.ref(storage, partial(self._freed, id(storage), size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int, reference: weakref.ref[torch.UntypedStorage]) -> None:
        self.live -= size
        if self._known.get(key) is reference:
            del self._known[key]


def _dense(value: Tensor) -> tuple[Tensor, ...]:
    """The tensor itself, or the two parts that store a sparse one."""
    return (value,) if value.layout == torch.strided else (value._indices(), value._values())
