"""Settings of a sparse model's inputs, pooling and regularisation, saved with the weights."""

from __future__ import annotations

from dataclasses import dataclass

from rankpo.models.settings import Settings

POOLING = ("max", "sum")
ACTIVATIONS = ("relu", "log1p_relu")
QUERY_ENCODERS = ("same", "static")


@dataclass(frozen=True, kw_only=True)
class SparseSettings(Settings):
    """Settings of the encoding of a text.

    pooling: max (SPLADE v2, https://arxiv.org/abs/2109.10086) or sum (https://arxiv.org/abs/2107.05720) over the tokens
    of a text. activation: "relu" is log(1 + relu(x)); "log1p_relu" is log(1 + log(1 + relu(x))), as in OpenSearch's
    models (https://arxiv.org/abs/2504.14839). query_encoder: "same" encodes queries with the model; "static" gives each
    distinct token of a query a weight, without a forward pass. freeze_query_weights: whether the weights of static
    queries stay fixed in training. max_active: the number of largest entries of a vector that are kept outside of
    training; None keeps all. Lengths are in tokens, including special tokens.
    """

    pooling: str = "max"
    activation: str = "relu"
    query_encoder: str = "same"
    freeze_query_weights: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 256
    passage_max_length: int = 256
    max_active: int | None = None

    def __post_init__(self) -> None:
        choices = {"pooling": POOLING, "activation": ACTIVATIONS, "query_encoder": QUERY_ENCODERS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name} must be >= 4 tokens, got {getattr(self, name)}")
        if self.max_active is not None and self.max_active < 1:
            raise ValueError(f"max_active must be >= 1 or null, got {self.max_active}")

    def in_words(self) -> str:
        lengths = sorted({self.query_max_length, self.passage_max_length})
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt}
        return ", ".join(
            [
                f"{self.pooling} pooling of {self.activation}",
                *(["static queries"] if self.query_encoder == "static" else []),
                f"{' and '.join(map(str, lengths))} tokens",
                *([] if self.max_active is None else [f"at most {self.max_active} active entries"]),
                *(f"{name} prompt {text!r}" for name, text in prompts.items() if text),
            ]
        )
