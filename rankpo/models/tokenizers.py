"""Changes of tokenizers that a checkpoint's files require."""

from __future__ import annotations

from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Several
from transformers import PreTrainedTokenizerBase


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes the tokenizer lower-case texts first, like do_lower_case of sentence-transformers."""
    backend: Any = tokenizer.backend_tokenizer
    known = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = Several([Lowercase(), *known])
