"""Bidirectional attention in decoders (LLM2Vec, https://arxiv.org/abs/2404.05961)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def make_two_way(backbone: PreTrainedModel) -> None:
    """Removes the causal mask; transformers 5 and later do the same for the saved folder (`is_causal`).

    Raises ValueError for an architecture that stays causal.
    """
    window = getattr(backbone.config.get_text_config(), "sliding_window", None)
    if window is not None:  # Libraries disagree about the width of bidirectional windows.
        raise ValueError(
            f"{type(backbone).__name__} has sliding windows of {window} tokens, which bidirectional attention does not support; "
            "set model.bidirectional=false"
        )
    backbone.config.is_causal = False
    for module in backbone.modules():
        if isinstance(getattr(module, "is_causal", None), bool):  # These are attention layers of transformers.
            module.is_causal = False  # type: ignore[assignment]
    if not _sees_what_follows(backbone):
        raise ValueError(f"{type(backbone).__name__} supports only causal attention; set model.bidirectional=false")


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
