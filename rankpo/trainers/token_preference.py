"""Trainer for TDPO and Ra-DPO, preference losses with a divergence between policy and reference at every token."""

from __future__ import annotations

from torch import Tensor

from rankpo.losses.token_preference import TokenPreferenceLoss
from rankpo.models.causal_lm.language_model import sum_by_sequence
from rankpo.models.engine.token_logps import TokenRequest
from rankpo.trainers.paired_preference import PairedPreferenceTrainer
from rankpo.types import Batch, LossOutput


class TokenPreferenceTrainer(PairedPreferenceTrainer):
    """Trains with the losses tdpo and ra-dpo.

    A divergence needs the distributions of both models over the vocabulary. The token engine computes them for one
    block of tokens at a time, because the distributions of all tokens would need too much memory.
    """

    loss: TokenPreferenceLoss

    def compute_loss(self, batch: Batch) -> LossOutput:
        assert self.reference is not None
        sequences = batch.sequences
        states = self.reference.states(sequences)
        tokens = self.model(sequences, TokenRequest(reference=states, divergences=self.loss.measures))

        def scores(values: Tensor) -> Tensor:
            return self.policy.score(sum_by_sequence(values, sequences), batch)  # [B, G]

        return self.loss(
            scores(tokens.logps),
            batch.labels,
            scores(tokens.reference_logps),
            divergences={name: scores(values) for name, values in tokens.divergences.items()},
        )
