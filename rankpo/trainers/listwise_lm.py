"""Trainer of listwise language-model rerankers."""

from __future__ import annotations

from rankpo.losses.listwise_lm import ListwiseLMLoss
from rankpo.models.base import RankingModel
from rankpo.models.listwise.model import ListwiseModel
from rankpo.models.listwise.ranked import ListwiseOutput
from rankpo.trainers.listwise import ListwiseTrainer
from rankpo.types import Batch, LossOutput


class ListwiseLMTrainer(ListwiseTrainer):
    """Trains the generation, ranking and combined objectives; one forward pass yields answers and identifier logits."""

    policy: ListwiseModel
    loss: ListwiseLMLoss
    main_term = "generation"

    def check(self) -> None:
        policy: RankingModel = self.policy
        if not isinstance(policy, ListwiseModel):
            raise ValueError(
                f"loss=listwise_… trains listwise rerankers, not a model of kind {policy.kind}; add kind=listwise"
            )
        super().check()
        # The inputs depend on the objective, so this must precede the preparation of the first update.
        policy.inputs.answers = "answers" in self.loss.needs

    def compute_loss(self, batch: Batch) -> LossOutput:
        policy, loss = self.policy, self.loss
        policy.noise_key = (self.loader.seed, self.state.step)
        output: ListwiseOutput = self.model(batch.sequences)
        reference = None
        if "reference" in loss.needs and self.reference is not None:
            reference = self.reference.scores(batch)
        scores = policy.score(output, batch)
        if output.answer_logps is None:
            return loss(scores, batch.labels, reference)
        return loss(scores, batch.labels, reference, answer_logps=output.answer_logps)
