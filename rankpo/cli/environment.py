"""Description of the environment for bug reports.

It lists versions, devices and paths, and omits secrets, user names and machine names.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from rankpo import __version__
from rankpo.config.places import ACCELERATE, CONFIG, INSTALLED
from rankpo.storage.printable import shown

LIBRARIES = (
    *("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "hydra-core", "omegaconf", "numpy"),
    *("scipy", "deepspeed", "flash-attn", "sentence-transformers", "datasets", "faiss-cpu", "faiss-gpu-cu12", "vllm"),
)
VARIABLES = (  # Only variables that never contain a secret, since users paste the output into public issues.
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF"),
)


def lines() -> list[str]:
    """Returns the description as lines of the form `name: value`, in a fixed order."""
    where = "installed" if INSTALLED else "checkout"
    memory = psutil.virtual_memory().total / 2**30
    facts = [
        ("rankpo", f"{__version__} ({where})"),
        ("python", platform.python_version()),
        ("platform", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("cpus", f"{os.cpu_count()}, {memory:.1f} GiB of memory"),
        *_devices(),
        *((name, _version(name)) for name in LIBRARIES),
        *((name, os.environ[name]) for name in VARIABLES if name in os.environ),
        ("configs", _from_home(str(CONFIG))),
        ("accelerate configs", _from_home(str(ACCELERATE))),
        ("interpreter", _from_home(sys.executable)),
    ]
    return [shown(f"{name}: {value}") for name, value in facts]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    found = [("cuda of torch", str(torch.version.cuda))]
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found.append(
            (f"gpu {number}", f"{card.name}, {card.total_memory / 2**30:.1f} GiB, sm_{card.major}{card.minor}")
        )
    if torch.backends.mps.is_available():
        found.append(("mps", "available"))
    return found if len(found) > 1 else [*found, ("gpu", "none")]


def _from_home(path: str) -> str:
    """Replaces the home directory by `~`, since its path contains the user's name."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if path.startswith(f"{home}{os.sep}") else path
