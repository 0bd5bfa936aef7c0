"""AdamW with a state of 8 bits, by bitsandbytes. Only the check of optimizer=adamw_8bit and its paged form imports this."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import ClassVar

if find_spec("bitsandbytes") is None:
    raise ImportError(
        "optimizer=adamw_8bit and optimizer=adamw_8bit_paged need bitsandbytes: pip install 'rankpo[quantized]'"
    )

import torch
from bitsandbytes.optim import AdamW8bit as LibraryAdamW8bit


class AdamW8bit(LibraryAdamW8bit):
    """AdamW (Loshchilov and Hutter, ICLR 2019) whose two moments are stored in blocks of 8-bit numbers (Dettmers et al.,
    ICLR 2022); weights with fewer than `min_8bit_size` entries keep moments in float32."""

    paged: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[object],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        min_8bit_size: int = 4096,
    ) -> None:
        if self.paged and not torch.cuda.is_available():
            raise ValueError("adamw_8bit_paged needs a CUDA GPU; set optimizer=adamw_8bit")
        super().__init__(
            params,
            lr=lr,
            betas=tuple(betas),
            eps=eps,
            weight_decay=weight_decay,
            min_8bit_size=min_8bit_size,
            is_paged=self.paged,
        )


class PagedAdamW8bit(AdamW8bit):
    """`AdamW8bit` whose moments are in memory that the GPU and the machine share, and move to the machine if the GPU is
    full (Dettmers et al., 2023, https://arxiv.org/abs/2305.14314). Raises ValueError without a CUDA GPU."""

    paged = True
