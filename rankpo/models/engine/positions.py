"""Positions of a model: the length of its longest sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def usable_positions(backbone: PreTrainedModel, offset: int) -> int | None:
    """Tokens of the longest sequence (XLM-R: 514 rows give 512); None if the architecture has no limit.

    offset: the position of the first token.
    """
    limit = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None or int(limit) < 1 else int(limit) - offset  # XLNet has -1: no limit.


def check_positions(max_length: int, backbone: PreTrainedModel, offset: int) -> None:
    """Raises ConfigError for a length above the model's usable positions, where some architectures fail and others use
    untrained positions.
    """
    usable = usable_positions(backbone, offset)
    if usable is not None and max_length > usable:
        raise ConfigError(
            [f"model.max_length={max_length}, but the model has {usable} positions; lower it to {usable} or less"]
        )
