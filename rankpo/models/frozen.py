"""Frozen weights: their dtype and quantisation when only adapters are trained.

QLoRA (https://arxiv.org/abs/2305.14314) keeps the weights under the adapters in 4 bits, as NormalFloat with double
quantisation, and computes in the dtype of the activations. LLM.int8 (https://arxiv.org/abs/2208.07339) keeps 8 bits.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

DTYPES = ("auto", "float32", "bfloat16")
QUANTIZATION = ("4bit", "8bit")


def keep_layout(model: nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Its kernel for the repacked weights (0.50) has no gradient, so adapters below such a layer would train wrongly.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


@dataclass(frozen=True)
class WeightForm:
    """The dtype and quantisation of loaded weights.

    dtype: float32, bfloat16, or auto, which means float32, or on a GPU the stored bfloat16 for weights under adapters.
    quantization: 4bit, 8bit or None. under_adapters: whether the weights are frozen. random: whether they are random.
    """

    dtype: str = "auto"
    quantization: str | None = None
    under_adapters: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantization is None:
            return
        if self.quantization not in QUANTIZATION:
            raise ValueError(f"quantization must be 4bit, 8bit or null, got {self.quantization!r}")
        if not self.under_adapters:
            raise ValueError(
                f"quantization={self.quantization} needs use_peft=true, since quantised weights cannot be trained; "
                "to run a quantised model, use a server"
            )
        if self.random:
            raise ValueError("quantization needs a checkpoint, but model.random is set; remove one of the two")

    def torch_dtype(self, stored: str | None) -> torch.dtype:
        """Returns the dtype of the weights. stored: the dtype in the checkpoint's config, such as bfloat16, or None."""
        import torch

        if self.dtype != "auto":
            return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        kept = self.under_adapters and torch.cuda.is_available() and stored == "bfloat16"
        return torch.bfloat16 if kept else torch.float32

    def quantized(self, dtype: torch.dtype) -> BitsAndBytesConfig | None:
        """Returns the configuration of bitsandbytes, or None. dtype: of the layers that are not quantised.

        Raises ConfigError if the package is missing.
        """
        import torch
        from transformers import BitsAndBytesConfig

        if self.quantization is None:
            return None
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                [f"model.quantization={self.quantization} needs the package bitsandbytes: pip install bitsandbytes"]
            )
        if self.quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else dtype,
        )
