"""Transfer of updates to a GPU: the order of copies, waits and uses, seen by a stand-in of torch.cuda's streams."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rankpo.trainers.transfer import SideStream, Transfer, transfer_to
from tests.recipes import EVERY
from tests.runs import trainer_of
from tests.waits import DEVICE, without_autocast


class Streams:
    """Streams and events with the interface of torch.cuda, which write down the order of calls in `log`."""

    def __init__(self):
        self.log, self.here = [], "main"

    def Stream(self, device):
        return Stream(self, "side")

    def current_stream(self, device):
        return Stream(self, "main")

    @contextmanager
    def stream(self, stream):
        self.here, before = stream.name, self.here
        yield
        self.here = before


class Stream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def record_event(self):
        self.streams.log.append(f"event after {self.name}")
        return "event"

    def wait_event(self, event):
        self.streams.log.append(f"{self.name} waits for {event}")


class Seen(TorchDispatchMode):
    """Writes copies to the device, and operations on it, into the log of the streams."""

    def __init__(self, streams, pinned):
        super().__init__()
        self.streams, self.pinned = streams, pinned

    def __torch_dispatch__(self, function, types, given=(), named=None):
        result = function(*given, **(named or {}))
        if function is torch.ops.aten._to_copy.default and str((named or {}).get("device")) == DEVICE:
            kind = "copy" if id(given[0]) in self.pinned and named.get("non_blocking") else "slow copy"
            self.streams.log.append(f"{kind} in {self.streams.here}")
        elif any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in given):
            self.streams.log.append(f"use in {self.streams.here}")
        return result


@pytest.fixture
def streams(monkeypatch):
    """The stand-in, with pinned memory and records of streams, which need a GPU, written down."""
    streams, pinned = Streams(), {}

    def pin(tensor):
        copy = tensor.clone()
        pinned[id(copy)] = copy  # Held, so that no other tensor gets its id.
        return copy

    def record(tensor, stream):
        assert tensor.is_meta
        streams.log.append(f"memory kept for {stream.name}")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    streams.pinned = pinned
    return streams


@pytest.mark.parametrize(
    "recipe", ["contrastive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("replay", "kto"))]
)
def test_copies_precede_the_wait_and_the_wait_precedes_use(recipe, streams, tmp_path):
    trainer = trainer_of(*EVERY[recipe], f"cache_dir={tmp_path}", "trainer.max_tokens=100")
    trainer.policy.train()
    update = trainer.prepare(0)
    for model in (trainer.policy, *vars(trainer.reference or object).values()):
        if isinstance(model, torch.nn.Module):
            model.to(DEVICE)
    sender = SideStream(torch.device(DEVICE), streams)
    with without_autocast(), Seen(streams, streams.pinned):
        sent = sender.send(update)
        assert set(streams.log[:-1]) == {"copy in side"} and streams.log[-1] == "event after side"
        copies = len(streams.log) - 1
        received = sender.receive(sent)
        assert streams.log[copies + 1] == "main waits for event"
        assert streams.log[copies + 2 :] == ["memory kept for main"] * copies
        before = len(streams.log)
        trainer.backward(trainer.begin(received))
    later = streams.log[before:]
    assert "use in main" in later and not any("side" in line for line in later)
    assert "copy in main" not in later  # A batch that is on the device is not copied again.


def test_a_cpu_and_a_device_without_streams_copy_nothing_ahead():
    for device in ("cpu", "mps", "meta"):
        assert type(transfer_to(torch.device(device))) is Transfer
    plain, update = Transfer(), object()
    assert plain.receive(plain.send(update)) is update


def test_the_loop_sends_and_receives(tmp_path, monkeypatch):
    """Every update of a run passes through the transfer once, in its order."""
    sent, received = [], []

    class Noted(Transfer):
        def send(self, update):
            sent.append(update.ids)
            return super().send(update)

        def receive(self, made):
            received.append(made.update.ids)
            return super().receive(made)

    monkeypatch.setattr("rankpo.trainers.basic.transfer_to", lambda device: Noted())
    trainer = trainer_of(*EVERY["rankpo"], f"cache_dir={tmp_path}", "trainer.max_steps=2")
    monkeypatch.setattr(trainer, "save_final", lambda *_: None)
    trainer.train()
    ids = [trainer.prepare(step).ids for step in range(2)]
    assert sent == received == ids
