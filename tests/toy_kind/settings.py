"""Settings of the kind `toy`: the keys of its yaml that its folder keeps."""

from __future__ import annotations

from dataclasses import dataclass

from rankpo.models.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """Prompts in front of texts, and their lengths in tokens, special tokens included."""

    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 64
    passage_max_length: int = 96
