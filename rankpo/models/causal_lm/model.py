"""Causal language models: a sequence's score is the log-probability of its completion.

The interface that losses and trainers on tokens build on:

- `model(sequences)` gives [N] float32: the sum over a sequence's labels (those that are not -100) of log p(label), in
  nats. `model.score(output, batch)` lays them out as [B, G]; `batch.labels.lengths` [B, G] counts the scored tokens.
- `model(sequences, TokenRequest(...))` gives `TokenValues` at the P scored positions, sequence after sequence:
  logps, and where asked for reference_logps, divergences by name, entropy and hidden states, [P] or [P, D] each.
  `scored_counts(sequences)` [N] says how many positions belong to each sequence: `values.logps.split(counts)`.
- `reference.reference_states(sequences)` gives what `TokenRequest(reference=…)` takes: the hidden states of a frozen
  model, or under `adapters_off()` of the policy itself, at the same positions. Its logits are made block by block
  beside the policy's and never stand in memory together.
- Everything goes through `forward`, so that DDP, FSDP and autocast see it: call the wrapped model, never its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.data.table import ExampleTable
from rankpo.models.causal_lm.completions import CompletionModel
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.language_model import LanguageModel, scored_labels, sum_by_sequence
from rankpo.models.engine.token_logps import Divergence, ReferenceStates, TokenRequest, TokenValues, token_values
from rankpo.types import Prompt, Sequences


class CausalLanguageModel(LanguageModel, CompletionModel):
    """Log-probabilities of completions by any `*ForCausalLM` of transformers with a linear output head.

    value_head: the critic of loss=ppo, see value_head.py, or None.
    """

    kind: ClassVar[str] = "causal_lm"

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: CompletionInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
        share_prompts: bool = True,
    ) -> None:
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens, share_prompts=share_prompts)
        self.inputs = inputs.sharing_prompts(self.share_prompts)
        self.value_head: nn.Module | None = None

    @overload
    def forward(self, sequences: Sequences) -> Tensor: ...
    @overload
    def forward(self, sequences: Sequences, request: TokenRequest) -> TokenValues: ...
    def forward(self, sequences: Sequences, request: TokenRequest | None = None) -> Tensor | TokenValues:
        hidden = self.scored_hidden(sequences)  # [P, D]
        labels = scored_labels(sequences).to(self.device, non_blocking=True)  # [P]
        values = token_values(hidden, labels, self.head, request or TokenRequest())
        if request is None:
            return sum_by_sequence(values.logps, sequences)
        return values if self.value_head is None else values._replace(critic=self.value_head(hidden))

    @torch.no_grad()
    def reference_states(self, sequences: Sequences) -> ReferenceStates:
        """Returns the states for a `TokenRequest` with this model as the reference, without gradient."""
        with self.evaluating():
            if not self.sharded:
                return ReferenceStates(self.scored_hidden(sequences), self.head)
            # Sharded weights are gathered only in a full forward pass; the policy's pass gathers the shared head.
            hidden = self(sequences, TokenRequest(hidden=True)).hidden
            return ReferenceStates(hidden, head=None)

    def slot_values(
        self,
        table: ExampleTable,
        reference: Callable[[Sequences], ReferenceStates] | None = None,
        divergences: Mapping[str, Divergence] | None = None,
    ) -> dict[str, np.ndarray]:
        """[slots] float32 by name: `scores` as `slot_scores`; with the states of a reference also `reference`, the same
        of its model, and the divergences from it, summed over each completion's tokens."""
        names = ("scores",) if reference is None else ("scores", "reference", *(divergences or {}))
        sums = self.slot_columns(
            table, len(names), lambda sequences: self._sums(sequences, reference, divergences or {})
        )
        return {name: np.ascontiguousarray(sums[:, column]) for column, name in enumerate(names)}

    def _sums(
        self,
        sequences: Sequences,
        reference: Callable[[Sequences], ReferenceStates] | None,
        divergences: Mapping[str, Divergence],
    ) -> Tensor:
        """[N, 1], or [N, 2 + divergences] with a reference: float32 on the CPU."""
        if reference is None:
            return self(sequences).float().cpu()[:, None]
        values = self(sequences, TokenRequest(reference=reference(sequences), divergences=divergences))
        assert values.reference_logps is not None
        columns = (values.logps, values.reference_logps, *values.divergences.values())
        return torch.stack([sum_by_sequence(column, sequences).float().cpu() for column in columns], 1)

    def logps(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """[n] float32 log-probabilities in nats of completions, each behind its prompt: text, or (role, content) turns."""
        return self.score_completions(prompts, completions)
