"""Precision of a run: trainer.precision=auto, settled by the launcher and the device."""

from __future__ import annotations

import os

import torch

from rankpo.runs.launcher import precision_asked


def settled_precision(asked: str) -> str:
    """Returns the precision that trainer.precision selects.

    "auto" selects the precision that `accelerate launch` requests. If it requests none, "auto" selects bf16 on a GPU
    that supports it, and fp32 elsewhere.
    """
    if asked != "auto":
        return asked
    on_device = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return precision_asked(os.environ) or on_device
