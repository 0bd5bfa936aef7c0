"""Parts of a forward pass in threads of their own: the results of one thread, in their order."""

import threading
import time

import pytest
import torch
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.threads import in_threads
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.vectors import parts_of
from tests.models.families import backbone

TEXTS = [f"text number {number} " * (1 + number % 3) for number in range(40)]


@pytest.fixture
def threads():
    """Sets the number of torch's threads during a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_are_in_order_and_no_more_threads_run_than_torch_has(threads):
    threads(3)
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert torch.get_num_threads() == 1
        time.sleep(0.002 * (item % 3))
        with lock:
            running -= 1
        return item * item

    assert list(in_threads(work, range(20))) == [item * item for item in range(20)]
    assert most == 3 and torch.get_num_threads() == 3
    assert list(in_threads(lambda item: torch.get_num_threads(), range(4), several=False)) == [3] * 4


def test_fewer_parts_than_threads_divide_the_threads(threads):
    threads(4)
    assert list(in_threads(lambda item: torch.get_num_threads(), range(2))) == [2, 2]


def test_threads_have_the_callers_gradient_mode_and_autocast(threads):
    threads(2)

    def mode(item: int) -> tuple[bool, bool, torch.dtype]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert list(in_threads(mode, range(3))) == [(False, True, torch.float16)] * 3
    assert [found[:2] for found in in_threads(mode, range(3))] == [(True, False)] * 3


def test_an_error_ends_the_work(threads):
    threads(2)
    seen = []

    def work(item: int) -> None:
        seen.append(item)
        if item == 1:
            raise ValueError("item 1")

    with pytest.raises(ValueError, match="item 1"):
        list(in_threads(work, range(100)))
    assert len(seen) < 20 and torch.get_num_threads() == 2


def test_vectors_do_not_depend_on_the_threads(threads, monkeypatch):
    settings = EmbeddingSettings(query_max_length=64, passage_max_length=64)
    model = EmbeddingModel(backbone("bert"), EmbeddingInputs(byte_tokenizer(), settings), chunk_tokens=100)
    names = set()
    model.register_forward_hook(lambda *_: names.add(threading.current_thread().name.rpartition("_")[0]))
    threads(1)
    alone = model.encode(TEXTS)
    assert names == {""}
    threads(3)
    assert_close(model.encode(TEXTS), alone, atol=0, rtol=0)
    assert names == {"", "forward"}
    names.clear()
    monkeypatch.setattr(model, "sharded", True)
    assert_close(model.encode(TEXTS), alone, atol=1e-6, rtol=1e-6)
    assert names == {""}


def test_parts():
    lengths = torch.tensor([3, 9, 4, 0, 20, 2])
    assert [part.tolist() for part in parts_of(lengths, 10)] == [[4], [1], [0, 2, 3, 5]]
    assert parts_of(torch.zeros(0, dtype=torch.int64), 10) == []
