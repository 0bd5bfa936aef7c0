"""Scalar heads on causal language models: the critic's value of every token, the reward of a whole completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.models.embedding.model import pool

if TYPE_CHECKING:
    from rankpo.models.engine.token_logps import TokenRequest
    from rankpo.types import Prompt, Sequences

VALUE_HEAD_FILE = "value_head.safetensors"


class ScalarHead(nn.Module):
    """[..., D] hidden states to [...] float32. It starts at 0, so that the first value is known."""

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
    """The critic V(s_t) on detached hidden states: its error must not move the policy."""

    def __init__(self, size: int) -> None:
        super().__init__(size, bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.detach())


class RewardModel(CausalLanguageModel):
    """A causal language model with a scalar head on each sequence's last token, for Bradley-Terry.

    `model(sequences)` gives [N] rewards. The head has no bias, which no preference could teach, so that FINAL loads
    with AutoModelForSequenceClassification.
    """

    kind = "reward_model"

    def __init__(self, model: CausalLanguageModel) -> None:
        """Takes over the backbone of `model`, adapters included."""
        nn.Module.__init__(self)
        for name in ("chunk_tokens", "packed", "position_offset", "tokenizer", "settings", "inputs"):
            setattr(self, name, getattr(model, name))
        # a reward stands on the last token, which shared prompts leave out
        self.inputs.share_prompts = self.share_prompts = False
        self.backbone = model.backbone
        self.value_head = None
        self.reward_head = ScalarHead(_hidden_size(model), bias=False)
        output = self.base.get_output_embeddings()
        if output is not None and output.weight is not self.base.get_input_embeddings().weight:
            output.requires_grad_(False)  # no reward depends on it

    def forward(self, sequences: Sequences, request: TokenRequest | None = None) -> Any:
        if request is not None:
            raise ValueError("a reward model has no token distributions")
        rows, last = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            last.append(pool(hidden, lengths, "last"))
        if not rows:
            return torch.zeros(0, device=self.device)
        return self.reward_head(torch.cat(last)[torch.argsort(torch.cat(rows)).to(self.device)])  # [N]

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """[n] float32 rewards of completions, each behind its prompt: text, or (role, content) turns."""
        return self.logps(prompts, completions)  # the same reading; what `forward` gives are rewards here

    def export(self, folder: Path, description: Mapping[str, Any]) -> float:
        from rankpo.models.reward_model.saving import export_reward

        return export_reward(folder, self, description)


def with_head(model: Any, head: str | None, load_from: str | None = None) -> Any:
    """The model with the scalar head that a loss asks for: "value" or "reward"; None leaves it as it is.

    load_from: a folder that may hold the value head of an earlier run.
    """
    if head is None or not isinstance(model, CausalLanguageModel):
        return model
    if head == "reward":
        return RewardModel(model)
    model.value_head = ValueHead(_hidden_size(model))
    saved = None if load_from is None else Path(load_from) / VALUE_HEAD_FILE
    if saved is not None and saved.exists():
        model.value_head.load_state_dict(load_file(saved))
    return model


def _hidden_size(model: CausalLanguageModel) -> int:
    return int(model.head.weight.shape[1])
