"""trainer.precision=auto: what it settles to, and how runs and sweeps compare it."""

import pytest
import torch

from rankpo.runs.launcher import precision_asked
from rankpo.runs.precision import settled_precision
from rankpo.storage.json_files import read_json
from tests.runs import TINY, compose, train


@pytest.mark.parametrize(
    "asked, cuda, bf16, launcher, settled",
    [
        ("auto", False, False, {}, "fp32"),
        ("auto", True, True, {}, "bf16"),
        ("auto", True, False, {}, "fp32"),
        ("fp32", True, True, {}, "fp32"),
        ("fp16", True, True, {}, "fp16"),
        ("auto", False, False, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16"),
        ("auto", True, True, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16"),
        ("auto", True, True, {"ACCELERATE_MIXED_PRECISION": "no"}, "bf16"),
    ],
)
def test_auto_settles_by_launcher_and_device(monkeypatch, asked, cuda, bf16, launcher, settled):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert settled_precision(asked) == settled


def test_the_launchers_word_for_a_precision():
    assert precision_asked({}) is None
    assert precision_asked({"ACCELERATE_MIXED_PRECISION": "BF16"}) == "bf16"


def test_a_run_records_the_precision_that_it_had(tmp_path):
    """A run that began with trainer.precision=fp32 continues with auto on a CPU, and config.json names fp32."""
    options = (
        *TINY,
        "datasets=[toy_contrastive]",
        "trainer.max_steps=2",
        f"cache_dir={tmp_path}",
        f"run_dir={tmp_path}/r",
    )
    assert compose(options).settings.precision == "auto"
    train(*options)
    assert read_json(tmp_path / "r/config.json")["trainer"]["precision"] == "fp32"
    train(*options, "resume=auto", "trainer.precision=fp32")
    train(*options, "resume=auto")
    with pytest.raises(Exception, match=r"trainer\.precision: 'fp32' -> 'bf16'"):
        train(*options, "resume=auto", "trainer.precision=bf16")
