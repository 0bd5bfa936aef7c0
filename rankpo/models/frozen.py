"""Frozen weights: their dtype and quantisation when only adapters are trained.

QLoRA (https://arxiv.org/abs/2305.14314) keeps the weights under the adapters in 4 bits, as NormalFloat with double
quantisation, and computes in the dtype of the activations. LLM.int8 (https://arxiv.org/abs/2208.07339) keeps 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

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
