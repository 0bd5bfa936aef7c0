"""Check of the lengths and dimensions of a bi-encoder's settings against its backbone."""

from __future__ import annotations

from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.positions import usable_positions


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
    if problems:
        raise ConfigError(problems)
