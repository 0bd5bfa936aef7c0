"""Body of a transformers model: the part that computes hidden states, without the head."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def body_of(backbone: PreTrainedModel) -> Any:
    """Returns the model under its head, or the model itself if it has no head.

    For Llama 4's language model, `base_model` returns the model with its head, since its prefix does not match the
    attribute of its body; this function returns the inner model.
    """
    body: object = backbone.base_model
    if body is backbone and backbone.get_output_embeddings() is not None:
        return next(child for child in backbone.children() if isinstance(child, PreTrainedModel))
    return body
