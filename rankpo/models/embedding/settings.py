"""Settings of an embedding model's inputs and pooling, saved with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankpo.models.layer_keys import Keys, checked_layer, sized_layers
from rankpo.models.settings import Settings

POOLING = ("cls", "mean", "last", "max", "mean_sqrt_len", "weighted_mean")
AUTO = "auto"  # Value of a key that is resolved by the architecture.


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(Settings):
    """Settings of the encoding of a text.

    pooling: cls, mean, last, max, mean_sqrt_len (the sum over √length) or weighted_mean (token i weighs i); several
    joined by "+" stand one after another. include_prompt: whether the tokens of the prompt are pooled. layers: what
    follows the pooling, in order, each a mapping with `type` (Dense, LayerNorm, Normalize, Dropout) and its keys in
    `layer_keys.LAYERS`. normalize: vectors of length 1 at the end. Lengths in tokens, special tokens included.
    truncate_dim: the first dimensions are kept (Matryoshka), None for all. bidirectional: every token of a decoder sees
    the whole text.
    pooled_layers: layers (0: the embeddings) whose pooled states stand one after another in place of those of the last
    layer, () for the last layer alone; a Dense among `layers` reads them all. prior_layers: layers (0: the embeddings) whose pooled hidden states give a passage's prior, () for no prior.
    prior_weight: λ of the score s(q, p) + λ·t(p), see `prior.py`.
    """

    pooling: str = "mean"
    include_prompt: bool = True
    layers: Sequence[Keys] = ()
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 512
    passage_max_length: int = 512
    truncate_dim: int | None = None
    bidirectional: bool = False
    pooled_layers: Sequence[int] = ()
    prior_layers: Sequence[int] = ()
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        modes = self.pooling.split("+")
        if self.pooling != AUTO and (not set(modes) <= set(POOLING) or len(set(modes)) < len(modes)):
            raise ValueError(
                f"pooling must be one of {', '.join((AUTO, *POOLING))}, or several joined by +, got {self.pooling!r}"
            )
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name} must be >= 4 tokens, got {getattr(self, name)}")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise ValueError(f"truncate_dim must be >= 1 or null, got {self.truncate_dim}")
        object.__setattr__(self, "layers", tuple(checked_layer(layer) for layer in self.layers))
        self._check_prior()

    def _check_prior(self) -> None:
        for name in ("pooled_layers", "prior_layers"):
            layers = tuple(getattr(self, name))
            if len(set(layers)) < len(layers) or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
                raise ValueError(f"{name} must be different numbers of layers >= 0, got {list(layers)}")
            object.__setattr__(self, name, layers)
        if len(self.pooled_layers) > 1 and self.pooling not in (AUTO, "mean"):
            raise ValueError(f"pooled_layers={list(self.pooled_layers)} needs pooling=mean, got {self.pooling}")
        if not self.prior_weight > 0:
            raise ValueError(
                f"prior_weight must be > 0, got {self.prior_weight}; to remove the prior, set prior_layers=[]"
            )

    @property
    def num_pooled(self) -> int:
        """The number of pooled vectors that stand one after another."""
        return len(self.pooling.split("+")) * max(1, len(self.pooled_layers))

    def sized(self, width: int) -> tuple[list[Keys], int]:
        """Returns the layers with their sizes, and the size of vectors before truncation. width: of the hidden states.

        Raises ValueError for layers with incompatible sizes.
        """
        return sized_layers(self.layers, width * self.num_pooled)

    def in_words(self) -> str:
        layers = [f"{layer['type']} to {layer['out_features']}" for layer in self.layers if layer["type"] == "Dense"]
        lengths = sorted({self.query_max_length, self.passage_max_length})
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt}
        return ", ".join(
            [
                f"{self.pooling} pooling{'' if self.include_prompt else ' without the prompt'}",
                *(["two-way attention"] if self.bidirectional else []),
                *layers,
                "normalised" if self.normalize else "not normalised",
                f"{' and '.join(map(str, lengths))} tokens",
                *([] if self.truncate_dim is None else [f"{self.truncate_dim} dimensions"]),
                *(f"{name} prompt {text!r}" for name, text in prompts.items() if text),
            ]
        )
