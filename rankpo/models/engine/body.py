"""Body of a transformers model: the part that computes hidden states, without the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
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


def freeze_pooler(backbone: PreTrainedModel) -> None:
    """Freezes the pooling head of encoders such as BERT, which embeddings do not use; exports keep it."""
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def summary(origin: str, model: nn.Module, attention: str) -> str:
    """Returns one line about a built model. origin: the source of its weights. attention: layout and implementation."""
    parameters = list(model.parameters())
    whole = sum(_count(parameter) for parameter in parameters) / 1e6
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad) / 1e6
    return f"{origin}: {whole:.2f} M parameters, {trained:.2f} M trained, {attention}"


def _count(parameter: nn.Parameter) -> int:
    """The number of weights; two 4-bit weights of bitsandbytes share a stored byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def compile_body(backbone: PreTrainedModel, packed: bool, say: Callable[[str], None]) -> None:
    """Compiles the body with torch.compile, for any shape. packed: whether its calls get the lengths of packed sequences."""
    if packed:  # The lengths become a part of the compiled graph.
        say("warning: model.compile=true compiles packed rows anew for each update; add model.layout=padded")
    body_of(backbone).compile(dynamic=True)
