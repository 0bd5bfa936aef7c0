"""Bidirectional and causal attention in decoders (LLM2Vec, https://arxiv.org/abs/2404.05961)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rankpo.models.architectures import is_decoder


def make_two_way(backbone: PreTrainedModel) -> None:
    """Removes the causal mask; transformers 5 and later do the same for the saved folder (`is_causal`).

    Raises ValueError for an architecture that stays causal.
    """
    _refuse_windows(backbone, "set model.bidirectional=false")
    _set_causal(backbone, False)
    if not _sees_what_follows(backbone):
        raise ValueError(f"{type(backbone).__name__} supports only causal attention; set model.bidirectional=false")


def make_one_way(backbone: PreTrainedModel) -> None:
    """Restores the causal mask of a decoder whose config.json removes it."""
    if _states_two_way(backbone):
        _set_causal(backbone, True)


def check_windows(backbone: PreTrainedModel) -> None:
    """Raises ValueError for a decoder with sliding windows whose config.json removes the causal mask."""
    if _states_two_way(backbone):
        _refuse_windows(backbone, "choose another model")


def _states_two_way(backbone: PreTrainedModel) -> bool:
    return getattr(backbone.config, "is_causal", None) is False and is_decoder(backbone.config.model_type)


def _refuse_windows(backbone: PreTrainedModel, advice: str) -> None:
    # Libraries disagree about the width of windows without a causal mask.
    window = getattr(backbone.config.get_text_config(), "sliding_window", None)
    if window is not None:
        raise ValueError(
            f"{type(backbone).__name__} has sliding windows of {window} tokens, which bidirectional attention does not support; "
            f"{advice}"
        )


def _set_causal(backbone: PreTrainedModel, causal: bool) -> None:
    backbone.config.is_causal = causal
    for module in backbone.modules():
        if isinstance(getattr(module, "is_causal", None), bool):  # These are attention layers of transformers.
            module.is_causal = causal  # type: ignore[assignment]


@torch.no_grad()
def _sees_what_follows(backbone: PreTrainedModel) -> bool:
    """Whether a different last token changes the first token's hidden state."""
    vocabulary = backbone.config.get_text_config().vocab_size
    ids = (torch.arange(11, 16, device=backbone.device) * 7) % vocabulary
    other = ids.clone()
    other[-1] = (other[-1] + 1) % vocabulary
    training = backbone.training
    backbone.eval()
    first, second = (backbone(input_ids=each[None]).last_hidden_state[0, 0] for each in (ids, other))
    backbone.train(training)
    return not torch.equal(first, second)
