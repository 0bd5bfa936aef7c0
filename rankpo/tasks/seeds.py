"""Random seeds of the libraries that draw weights and dropout."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the generators of the libraries, which draw new adapters, new heads and dropout masks.

    The order of the data does not depend on them, see data/random_keys.py.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
