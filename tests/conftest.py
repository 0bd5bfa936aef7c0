"""What every test stands on: no network, few threads, and nothing left over from the test before."""

import os
import sys
from pathlib import Path

import pytest

from tests.compositions import share

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

share()
os.fsync = lambda descriptor: None  # No test cuts the power, and the disk took a tenth of the suite's time.
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def clean_torch():
    """Default dtype, threads and the process group as a fresh process has them."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_exit_of_pytest(monkeypatch):
    """launch.py runs in this process too: there it raises SystemExit where a process of its own would end at once."""
    monkeypatch.setattr("rankpo.cli.program.leave", sys.exit)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real samples beside the checkout; tests that use it skip where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real samples are not part of the project")
    return folder
