"""BM25 scores of all documents in memory for a query, computed by bm25s, for texts in any script."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankpo.data.readers.fields import normal

METHODS = ("lucene", "robertson", "atire")  # The other methods give scores to documents without any query word.
TOKENIZERS = ("words", "model")

Tokenize = Callable[[str], list[str]]

# Scripts without spaces between words: Han, Hiragana, Katakana, Hangul, Thai.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_PIECES = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


class Bm25Error(RuntimeError):
    """Raised if bm25s is missing or no document has a token."""


@dataclass(frozen=True, kw_only=True)
class Bm25Settings:
    """Settings of BM25. method: the variant of the formula, with bm25s's name.

    tokenizer: `words`, lower-cased runs of letters and digits, pairs of characters in scripts without spaces;
    `model`, the subwords of the model's tokenizer.
    """

    k1: float = 1.5
    b: float = 0.75
    method: str = "lucene"
    tokenizer: str = "words"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, got {self.tokenizer!r}")
        if not self.k1 >= 0:
            raise ValueError(f"k1 must be >= 0, got {self.k1}")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b must be in [0, 1], got {self.b}")


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; runs of scripts without spaces as overlapping pairs of characters.

    >>> words("Deep-sea 3D 海底地形")
    ['deep', 'sea', '3d', '海底', '底地', '地形']
    """
    tokens: list[str] = []
    for piece in _PIECES.findall(normal(text).lower()):
        if _IS_UNSPACED.match(piece) and len(piece) > 1:
            tokens.extend(piece[place : place + 2] for place in range(len(piece) - 1))
        else:
            tokens.append(piece)
    return tokens


class Bm25Index:
    """Scores of every document for a query. tokenize: None takes `words`.

    Raises Bm25Error if no document has a token.
    """

    def __init__(self, texts: Sequence[str], settings: Bm25Settings, tokenize: Tokenize | None = None) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise Bm25Error("BM25 needs bm25s: pip install bm25s") from error
        self.tokenize = tokenize or words
        tokens = [self.tokenize(text) for text in texts]
        if not any(tokens):
            raise Bm25Error(f"none of {len(tokens)} documents has a token to index; set bm25.tokenizer=model")
        self.index: Any = bm25s.BM25(k1=settings.k1, b=settings.b, method=settings.method)
        self.index.index(tokens, show_progress=False, leave_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """[documents] float32 scores; 0 for documents without a token of the query."""
        known = [token for token in self.tokenize(query) if token in self.index.vocab_dict]
        if not known:
            return np.zeros(self.index.scores["num_docs"], dtype=np.float32)
        return self.index.get_scores(known)
