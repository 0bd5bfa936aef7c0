"""Families: the classes of transformers that load weights with or without a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)


class Family(Protocol):
    """A class of transformers' models with one kind of head, such as AutoModelForCausalLM."""

    def from_pretrained(self, *arguments: Any, **named: Any) -> Any: ...

    def from_config(self, config: Any, **named: Any) -> Any: ...


CAUSAL_LM: Family = AutoModelForCausalLM
CLASSIFIER: Family = AutoModelForSequenceClassification


def headless(config: Mapping[str, Any]) -> Family:
    """Returns the headless family for a config.json; for encoder-decoders, the encoder."""
    encoder = any(name.endswith("EncoderModel") for name in config.get("architectures") or [])
    return AutoModelForTextEncoding if encoder or config.get("is_encoder_decoder") else AutoModel
