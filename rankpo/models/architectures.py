"""Architectures of transformers, by their `model_type`."""

from __future__ import annotations


def is_decoder(name: str) -> bool:
    """Whether an architecture reads from left to right only: it is trained to continue texts, not to fill in masks.

    name: a `model_type`. Of an unknown one the answer is no.
    """
    from transformers.models.auto import modeling_auto

    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return name in causal and name not in masked
