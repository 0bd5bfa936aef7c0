"""Waits: finds operations on which the CPU would wait for a GPU, with the meta device in the place of the GPU.

A tensor on the meta device has no values, so that reading one raises an error. Some operations wait although they read
nothing: a copy to the device that is not marked as `non_blocking`, an index on the CPU into a tensor on the device, and
a tensor that is made on the device from Python numbers.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
MADE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class Waits:
    """The places in the code that would wait for the device, one line each."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, kind: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/rankpo/" in frame.filename]
        place = frames[-1] if frames else traceback.extract_stack()[-3]
        self.found.append(f"{kind}: {place.filename.rpartition('rankpo/')[2]}:{place.lineno}: {place.line}")


class _Dispatched(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function in COPIES and _copies_to_device(function, given, named):
            self.waits.note("blocking copy")
        if function in INDEXED and given[0].is_meta and any(index is not None and index.is_cpu for index in given[1]):
            self.waits.note("index on the CPU")
        return function(*given, **named)


def _copies_to_device(function: Any, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    if function is COPIES[0]:
        if given[0].is_meta or str(named.get("device")) != DEVICE:
            return False
        return not named.get("non_blocking", False)
    target, source = given[0], given[1]
    return target.is_meta and not source.is_meta and not (len(given) > 2 and given[2])


class _Called(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, function: Any, types: Sequence[type], given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*given, **(named or {}))
        if function in MADE and isinstance(result, Tensor) and result.is_meta:
            data = given[1] if function is Tensor.new_tensor else given[0]
            if not (isinstance(data, Tensor) and data.is_meta):
                self.waits.note("numbers to the device")
        return result


@contextmanager
def recorded():
    """Yields the `Waits` of the block; an operation that reads a value of the device raises an error."""
    waits = Waits()
    with _Dispatched(waits), _Called(waits):
        yield waits


@contextmanager
def without_autocast():
    """Replaces torch.autocast, which does not know the meta device, by nothing."""
    original: Callable[..., Any] = torch.autocast
    torch.autocast = lambda *given, **named: nullcontext()  # type: ignore[assignment, misc]
    with ExitStack() as stack:
        stack.callback(setattr, torch, "autocast", original)
        yield
