"""Random seeds of the libraries that draw weights and dropout."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds what libraries draw from: new adapters and heads, dropout. Data order has its own (data/random_keys.py)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
