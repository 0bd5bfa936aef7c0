"""Attention implementations: the one that was asked for, or eager attention for architectures without sdpa."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Loaded = TypeVar("Loaded")


def with_attention(load: Callable[..., Loaded], options: Mapping[str, object]) -> Loaded:
    """Returns `load(**options)`; with eager attention if the architecture does not support sdpa, as MPNet and DeBERTa.

    transformers decides in the same way when no implementation is given. options: with `attn_implementation`. Another
    implementation that is not supported raises transformers' error.
    """
    try:
        return load(**options)
    except ValueError as error:
        if options["attn_implementation"] != "sdpa" or "attention implementation" not in str(error):
            raise
    return load(**{**options, "attn_implementation": "eager"})


def used_attention(config: PreTrainedConfig, asked: str) -> str:
    """Returns the implementation that a loaded model uses, for messages. asked: the one that was asked for."""
    return "eager" if config._attn_implementation == "eager" else asked


@contextmanager
def plain_attention(backbone: PreTrainedModel, packed: bool) -> Iterator[Any]:
    """Yields the backbone with transformers' own attention, as other libraries and generation use it. packed: whether
    the enclosing `RankingModel` uses packed attention."""
    config = backbone.config
    asked = config._attn_implementation
    if packed:
        config._attn_implementation = "sdpa"
    try:
        yield backbone
    finally:
        config._attn_implementation = asked
