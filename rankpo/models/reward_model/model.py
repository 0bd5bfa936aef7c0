"""Reward models: a decoder with a scalar head on the last token of prompt and completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankpo.models.causal_lm.completions import CompletionModel
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.value_head import ScalarHead, head_size
from rankpo.models.engine.pooling import pool
from rankpo.types import Prompt, Sequences


class RewardModel(CompletionModel):
    """`forward(sequences)` gives [N] float32 rewards, for Bradley-Terry.

    The head has no bias, which no preference could teach, so that FINAL loads with AutoModelForSequenceClassification.
    backbone: a causal language model; its output head stays as it is.
    """

    kind: ClassVar[str] = "reward_model"

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: CompletionInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
    ) -> None:
        # the reward stands on the last token, which shared prompts leave out
        super().__init__(backbone, inputs.sharing_prompts(False), layout=layout, chunk_tokens=chunk_tokens)
        self.reward_head = ScalarHead(head_size(self.base), bias=False)
        if self._unread is not None:
            self._unread.requires_grad_(False)
        self.read_one_token("last")

    @torch.no_grad()
    def take_head(self, classifier: PreTrainedModel) -> None:
        """Copies the head of a saved reward model, as AutoModelForSequenceClassification loads it."""
        self.reward_head.linear.weight.copy_(classifier.get_parameter("score.weight"))

    def forward(self, sequences: Sequences) -> Tensor:
        rows, last = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences, "last"):
            rows.append(chunk)
            last.append(pool(hidden, lengths, "last"))
        if not rows:
            return torch.zeros(0, device=self.device)
        return self.reward_head(
            torch.cat(last)[torch.argsort(torch.cat(rows)).to(self.device, non_blocking=True)]
        )  # [N]

    def saved_state(self) -> dict[str, Tensor]:
        unread = {name for name, parameter in self.named_parameters() if parameter is self._unread}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in unread}

    @property
    def _unread(self) -> Tensor | None:
        """The weight of the output head, on which no reward depends; None where it is the input embedding too."""
        output = self.base.get_output_embeddings().weight
        return None if output is self.base.get_input_embeddings().weight else output

    def scores_of(self, query: Prompt, candidates: Sequence[str]) -> list[float]:
        return [float(value) for value in self.rewards([query] * len(candidates), candidates)]

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """[n] float32 rewards of completions, each behind its prompt: text, or (role, content) turns."""
        return self.score_completions(prompts, completions)
