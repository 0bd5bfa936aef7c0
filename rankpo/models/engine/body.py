"""The body of a transformers model: what gives hidden states, without a head."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def body_of(backbone: PreTrainedModel) -> Any:
    """The model under its head, or the model itself where it has none.

    `base_model` of Llama 4's language model is that model with its head, since its prefix names another attribute than
    the one that holds its body; there, the body is the model inside it.
    """
    body: object = backbone.base_model
    if body is backbone and backbone.get_output_embeddings() is not None:
        return next(child for child in backbone.children() if isinstance(child, PreTrainedModel))
    return body
