"""Transfer of prepared updates to a GPU: pinned copies in a stream of their own, while the update before them runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankpo.trainers.update import Ahead, Inputs, Prepared


@dataclass(frozen=True)
class Sent:
    """An update whose inputs are on their way to the device. copied: the event at the end of the copies, or None."""

    update: Prepared
    copied: torch.Event | None = None


class Transfer:
    """Without copies: the trainer copies each batch when it reads it. For CPUs, and for devices without streams."""

    def send(self, update: Prepared) -> Sent:
        """Begins to copy the inputs of the update. It may run in another thread than `receive`."""
        return Sent(update)

    def receive(self, sent: Sent) -> Prepared:
        """Returns the update. The operations that follow in this thread read its inputs after they have been copied."""
        return sent.update


class Within(Protocol):
    """A block in which operations run in one stream."""

    def __enter__(self) -> object: ...
    def __exit__(self, kind: object, value: object, traceback: object, /) -> None: ...


class Streams(Protocol):
    """The functions of torch.cuda that this module calls."""

    @property
    def Stream(self) -> type[torch.cuda.Stream]: ...
    def stream(self, stream: torch.cuda.Stream | None) -> Within: ...
    def current_stream(self, device: torch.device) -> torch.cuda.Stream: ...


class SideStream(Transfer):
    """Copies from pinned memory in a second stream of the device, so that neither the CPU nor the device waits for them."""

    def __init__(self, device: torch.device, streams: Streams) -> None:
        self.device, self.streams = device, streams
        self.side = streams.Stream(device)

    def send(self, update: Prepared) -> Sent:
        def copied(inputs: Inputs) -> Inputs:
            return inputs.mapped(Tensor.pin_memory).to(self.device)

        with self.streams.stream(self.side):
            moved = update.with_inputs(copied)
        return Sent(moved, self.side.record_event())

    def receive(self, sent: Sent) -> Prepared:
        current = self.streams.current_stream(self.device)
        assert sent.copied is not None
        current.wait_event(sent.copied)

        def kept(tensor: Tensor) -> Tensor:
            # The allocator must not give this memory to a later copy while the update still reads it.
            tensor.record_stream(current)
            return tensor

        def received(inputs: Inputs) -> Inputs:
            return inputs.mapped(kept)

        return sent.update.with_inputs(received)


def transfer_to(device: torch.device) -> Transfer:
    """The transfer for a device: a second stream on NVIDIA and AMD GPUs."""
    return SideStream(device, torch.cuda) if device.type == "cuda" else Transfer()


class UpdatesAhead:
    """Prepares the next update in a thread while this one runs, and sends its inputs to the device.

    The result of `prepare` must depend on the step alone. last: the number of updates of the run.
    """

    def __init__(self, prepare: Callable[[int], Prepared], last: int, transfer: Transfer) -> None:
        self.transfer = transfer
        self.ahead = Ahead(lambda step: transfer.send(prepare(step)), last)

    def get(self, step: int) -> Prepared:
        return self.transfer.receive(self.ahead.get(step))

    def close(self) -> None:
        self.ahead.close()
