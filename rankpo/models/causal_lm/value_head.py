"""Scalar heads of decoders: the critic's value of every token, and the reward of a completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.models.tensors import read_tensors

VALUE_HEAD_FILE = "value_head.safetensors"


class ScalarHead(nn.Module):
    """[..., D] hidden states to [...] float32. The initial weights are 0."""

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1, bias=bias)
        nn.init.zeros_(self.linear.weight)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


class ValueHead(ScalarHead):
    """The critic V(s_t) on detached hidden states, so that its error does not change the policy."""

    def __init__(self, size: int) -> None:
        super().__init__(size, bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.detach())


def attach_value_head(model: CausalLanguageModel, saved: Path | None = None) -> None:
    """Gives the model a critic. saved: a file that may hold its weights."""
    model.value_head = ValueHead(head_size(model.base))
    if saved is not None and saved.exists():
        model.value_head.load_state_dict(read_tensors(saved))


def head_size(backbone: Any) -> int:
    """D, the size of the hidden states that a language model's output head reads."""
    return int(backbone.get_output_embeddings().weight.shape[1])
