"""The part of task=export for task.part: one part of a hybrid model as a model of its own, with the same scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from rankpo.errors import ConfigError
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.hybrid.config import HybridKind
from rankpo.models.hybrid.model import HybridModel
from rankpo.models.inputs import TextInputs
from rankpo.models.late_interaction.config import LateInteractionKind
from rankpo.models.late_interaction.inputs import LateInteractionInputs
from rankpo.models.late_interaction.model import LateInteractionModel
from rankpo.models.late_interaction.settings import LateInteractionSettings

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind

Say = Callable[[str], None]
KINDS: dict[str, type[EmbeddingKind] | type[LateInteractionKind] | type[HybridKind]] = {
    "dense": EmbeddingKind,
    "colbert": LateInteractionKind,
    "sparse": HybridKind,
}
TEXTS = ("query_prompt", "passage_prompt", "query_max_length", "passage_max_length")


def kind_of_part(part: str, config: AnyKind) -> AnyKind:
    """The kind of the exported folder. config: of the whole model. Raises ConfigError for a model without parts."""
    if not isinstance(config, HybridKind):
        raise ConfigError(
            [f"task.part={part} is a part of a hybrid model, and this one is of kind {config.kind}; remove task.part"]
        )
    return cast("AnyKind", KINDS[part](name_or_path=config.origin, trust_remote_code=config.trust_remote_code))


def model_of_part(part: str, model: RankingModel, say: Say) -> RankingModel:
    """The part as a model of its own, which shares the weights of `model`; use `model` no longer.

    Raises ConfigError for part=colbert with a tokenizer whose first token is not a special token of its own.
    """
    assert isinstance(model, HybridModel)
    if model.packed:  # The new model chooses its layout anew.
        model.base.config._attn_implementation = "sdpa"
    makers = {"dense": _dense, "colbert": _colbert, "sparse": _sparse}
    made = makers[part](model, say)
    return made.to(model.device).eval()


def _texts(model: HybridModel) -> dict[str, object]:
    """The prompts and lengths, which all kinds have."""
    return {name: value for name, value in model.settings.to_json().items() if name in TEXTS}


def _dense(model: HybridModel, say: Say) -> RankingModel:
    settings = EmbeddingSettings.from_json({**_texts(model), "pooling": "cls", "normalize": True})
    return EmbeddingModel(model.base, EmbeddingInputs(model.tokenizer, settings))


def _colbert(model: HybridModel, say: Say) -> RankingModel:
    """The first token, which is the dense vector, has no token vector: its token is skipped in both roles."""
    special = model.inputs.special
    if not special.head or special.head[0] in (*special.head[1:], *special.tail):
        raise ConfigError(
            [
                "task.part=colbert leaves out the first token of each text by a skip list, but the tokenizer puts no "
                "special token of its own first; keep the hybrid model, with model.parts=[colbert]"
            ]
        )
    size = model.colbert_linear.out_features
    layer = {"type": "Dense", "out_features": size, "bias": True, "activation": "Identity"}
    skip = [model.tokenizer.convert_ids_to_tokens(special.head[0])]
    form = {"dim": size, "layers": [layer], "skip": skip, "skip_queries": True}
    settings = LateInteractionSettings.from_json({**_texts(model), **form})
    made = LateInteractionModel(model.base, LateInteractionInputs(model.tokenizer, settings))
    (projection,) = made.layers
    weights = model.colbert_linear.state_dict()
    projection.load_state_dict({f"linear.{name}": tensor for name, tensor in weights.items()})
    return made


def _sparse(model: HybridModel, say: Say) -> RankingModel:
    say(
        "sentence-transformers has no module for weights of a text's own tokens, so task.part=sparse writes a folder of "
        "kind=hybrid with parts=[sparse], which rankpo loads as that part alone"
    )
    settings = replace(model.settings, parts=("sparse",), sparse_weight=1.0)
    made = HybridModel(model.base, TextInputs(model.tokenizer, settings))
    made.sparse_linear, made.colbert_linear = model.sparse_linear, model.colbert_linear
    return made
