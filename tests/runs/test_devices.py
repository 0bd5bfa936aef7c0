"""The device of a process, and what Apple's GPU cannot do."""

from __future__ import annotations

import pytest
import torch

from rankpo.errors import ConfigError
from rankpo.runs.devices import check_precision, device_kind
from rankpo.runs.precision import settled_precision


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_one_process_takes_apples_gpu_and_several_the_cpu(apple):
    assert device_kind({}) == device_kind({"WORLD_SIZE": "1"}) == "mps"
    assert device_kind({"WORLD_SIZE": "2"}) == device_kind({"ACCELERATE_USE_CPU": "true"}) == "cpu"


def test_precisions_of_apples_gpu(apple):
    assert settled_precision("auto") == "fp32"
    check_precision("fp32", "mps")
    for precision in ("bf16", "fp16"):
        with pytest.raises(ConfigError, match=f"trainer.precision={precision}"):
            check_precision(precision, device_kind({}))


def test_a_gpu_of_nvidia_goes_before(apple, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_kind({"WORLD_SIZE": "2"}) == "cuda"
    check_precision("fp16", "cuda")


def test_a_cpu_trains_in_bf16_and_not_in_fp16(monkeypatch):
    check_precision("bf16", "cpu")
    with pytest.raises(ConfigError, match="needs a GPU"):
        check_precision("fp16", "cpu")
