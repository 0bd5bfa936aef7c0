"""Types of weights: the dtype and the quantisation that a `WeightForm` selects."""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from rankpo.errors import ConfigError
from rankpo.models.frozen import WeightForm


def torch_dtype(form: WeightForm, stored: str | None) -> torch.dtype:
    """Returns the dtype of the weights. stored: the dtype in the checkpoint's config, such as bfloat16, or None."""
    if form.dtype != "auto":
        return torch.bfloat16 if form.dtype == "bfloat16" else torch.float32
    kept = form.under_adapters and torch.cuda.is_available() and stored == "bfloat16"
    return torch.bfloat16 if kept else torch.float32


def quantized(form: WeightForm, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Returns the configuration of bitsandbytes, or None. dtype: of the layers that are not quantised.

    Raises ConfigError if the package is missing.
    """
    if form.quantization is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            [f"model.quantization={form.quantization} needs the package bitsandbytes: pip install bitsandbytes"]
        )
    if form.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else dtype,
    )
