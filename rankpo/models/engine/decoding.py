"""Decoding helpers of several kinds: left padding of prompts and truncation of answers at their end token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def left_padded(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and mask [n, T], both 0 on the padding before a prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def until(end: int, written: list[int]) -> list[int]:
    """Returns the tokens before the end token."""
    return written[: written.index(end)] if end in written else written
