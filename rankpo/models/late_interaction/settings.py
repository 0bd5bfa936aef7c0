"""Settings of a late-interaction model, saved with the weights."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.models.layer_keys import Keys, checked_layer, sized_layers
from rankpo.models.settings import Settings

EXPANSIONS = ("none", "fixed", "min")
PUNCTUATION = "punctuation"
# Similarities of sentence-transformers, and whether each divides by the number of query vectors.
SIMILARITIES: Mapping[str | None, bool] = {None: False, "maxsim": False, "meanmaxsim": True}
INLINE = "linear.weight"  # The projection in the weights of a Stanford ColBERT folder.


@dataclass(frozen=True, kw_only=True)
class LateInteractionSettings(Settings):
    """Settings of the encoding of a text as one vector per token, and of the score.

    dim: dimensions of a token's vector after a projection without bias; None uses the hidden states unchanged. layers:
    the Dense layers of the projection in order, each a mapping with the keys of `layer_keys.LAYERS`; the last one has
    `dim` outputs. normalize: scales token vectors to length 1. normalize_scores: divides MaxSim by the number of the
    query's vectors, so that it is in [-1, 1] for vectors of length 1; False keeps the sum. Prompts precede the text,
    such as the markers `[Q] ` and `[D] `. Lengths are in tokens, including special tokens. query_expansion: `fixed`
    pads every query with expansion_token up to query_max_length, `min` up to expansion_length, and `none` adds no
    tokens; each added token has a vector. attend_to_expansion: whether other tokens attend to the added tokens.
    expansion_token: None means the tokenizer's mask token, or its eos token if it has no mask token. skip: a list of
    tokens, or "punctuation"; these tokens of passages have no vector. skip_queries: applies `skip` to queries too.
    """

    dim: int | None = 128
    layers: Sequence[Keys] = ()
    normalize: bool = True
    normalize_scores: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 32
    passage_max_length: int = 300
    query_expansion: str = "none"
    expansion_length: int | None = None
    attend_to_expansion: bool = False
    expansion_token: str | None = None
    skip: Sequence[str] | str = ()
    skip_queries: bool = False

    def __post_init__(self) -> None:
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name} must be >= 4 tokens, got {getattr(self, name)}")
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"dim must be >= 1 or null, got {self.dim}")
        object.__setattr__(self, "layers", tuple(checked_layer(layer) for layer in self.layers))
        if strange := [layer["type"] for layer in self.layers if layer["type"] != "Dense"]:
            raise ValueError(f"layers: type must be Dense for token vectors, got {strange[0]!r}")
        if self.layers and self.layers[-1]["out_features"] != self.dim:
            raise ValueError(
                f"dim={self.dim}, but the last of layers has out_features={self.layers[-1]['out_features']}; set both to the same number"
            )
        object.__setattr__(self, "skip", _words(self.skip))
        self._check_expansion()

    def _check_expansion(self) -> None:
        if self.query_expansion not in EXPANSIONS:
            raise ValueError(f"query_expansion must be one of {', '.join(EXPANSIONS)}, got {self.query_expansion!r}")
        if self.query_expansion != "min":
            if self.expansion_length is not None:
                raise ValueError(
                    f"expansion_length={self.expansion_length} needs query_expansion=min; query_expansion=fixed fills "
                    "queries up to query_max_length"
                )
            return
        if self.expansion_length is None or not 1 <= self.expansion_length <= self.query_max_length:
            raise ValueError(
                f"expansion_length must be in 1 to query_max_length={self.query_max_length} with query_expansion=min, "
                f"got {self.expansion_length}"
            )

    @property
    def expanded_length(self) -> int:
        """Minimum tokens of a query after expansion; 0 without expansion."""
        if self.query_expansion == "fixed":
            return self.query_max_length
        return self.expansion_length or 0

    def projection(self) -> tuple[Keys, ...]:
        """The layers after the hidden states."""
        if self.layers or self.dim is None:
            return tuple(dict(layer) for layer in self.layers)
        plain = {"type": "Dense", "out_features": self.dim, "bias": False, "activation": "Identity"}
        return (checked_layer(plain),)

    def sized(self, width: int) -> tuple[list[Keys], int]:
        """The layers with their sizes, and the dimensions of a token's vector. width: of the hidden states."""
        return sized_layers(self.projection(), width)

    def in_words(self) -> str:
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt}
        return ", ".join(
            [
                "vectors of the hidden states" if self.dim is None else f"{self.dim} dimensions a token",
                *([] if self.normalize else ["not normalised"]),
                f"queries of {self.query_max_length} and passages of {self.passage_max_length} tokens",
                *([f"query expansion {self.query_expansion}"] if self.expanded_length else []),
                *([f"{len(self.skip)} skipped tokens"] if self.skip else []),
                "scores divided by the query's tokens" if self.normalize_scores else "scores summed over query tokens",
                *(f"{name} prompt {text!r}" for name, text in prompts.items() if text),
            ]
        )


def _words(skip: Sequence[str] | str) -> tuple[str, ...]:
    """The skip list. Raises ValueError for a text other than "punctuation"."""
    if isinstance(skip, str):
        if skip != PUNCTUATION:
            raise ValueError(f"skip must be {PUNCTUATION} or a list of tokens, got {skip!r}")
        return tuple(string.punctuation)
    return tuple(skip)
