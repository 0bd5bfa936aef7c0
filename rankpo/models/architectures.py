"""Architectures of transformers, by their `model_type`."""

from __future__ import annotations

from transformers.models.auto import modeling_auto


def is_decoder(name: str) -> bool:
    """Whether an architecture is a decoder with causal attention.

    name: a `model_type`; False for an unknown one.
    """

    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return name in causal and name not in masked
