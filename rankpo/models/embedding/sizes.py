"""Check of the lengths and dimensions of a bi-encoder's settings against its backbone."""

from __future__ import annotations

from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.positions import usable_positions
from rankpo.models.static import StaticModel


def check_sizes(settings: EmbeddingSettings, backbone: PreTrainedModel, offset: int, full_dim: int) -> None:
    """Raises ConfigError for lengths above the model's usable positions (XLM-R: 514 rows give 512), and for a
    truncate_dim above its dimensions.
    """
    usable = usable_positions(backbone, offset)
    problems = [
        f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
        for name in ("query_max_length", "passage_max_length")
        if usable is not None and (asked := getattr(settings, name)) > usable
    ]
    if settings.truncate_dim is not None and settings.truncate_dim > full_dim:
        problems.append(f"model.truncate_dim={settings.truncate_dim}, but the model has {full_dim} dimensions")
    if isinstance(backbone, StaticModel):
        problems += _of_static(settings)
    if problems:
        raise ConfigError(problems)


def _of_static(settings: EmbeddingSettings) -> list[str]:
    """What a StaticEmbedding cannot compute: it is the mean of the embeddings of all tokens, without layers."""
    given = {
        "pooling": (settings.pooling, "mean"),
        "include_prompt": (settings.include_prompt, True),
        "bidirectional": (settings.bidirectional, False),
        "pooled_layers": (list(settings.pooled_layers), []),
        "prior_layers": (list(settings.prior_layers), []),
    }
    return [
        f"model.{key}={value}, but static token embeddings have no layers and are averaged; set {key} to {allowed}"
        for key, (value, allowed) in given.items()
        if value != allowed
    ]
