"""Trainer for preference pairs on the scores of any model, with optional replay of stage-one data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.rankpo import RankPOLoss
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.trainers import in_batch
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.update import Change, Prepared, Update
from rankpo.types import Batch, LossOutput


@dataclass(frozen=True)
class ReplayedUpdate:
    """An update of preference pairs with an update of stage-one groups."""

    pairs: Update
    replayed: in_batch.InBatchUpdate

    @property
    def num_queries(self) -> int:
        return self.pairs.num_queries

    @property
    def num_tokens(self) -> int:
        return self.pairs.num_tokens + self.replayed.num_tokens

    @property
    def ids(self) -> tuple[str, ...]:
        return self.pairs.ids + self.replayed.ids

    def with_inputs(self, change: Change) -> ReplayedUpdate:
        return ReplayedUpdate(self.pairs.with_inputs(change), self.replayed.with_inputs(change))


class PairedPreferenceTrainer(BasicTrainer):
    """Trains rankpo, dpo and related losses.

    Replay adds InfoNCE or graded margin on stage-one groups, with its own denominator and metrics (`replay/…`). It
    preserves retrieval quality of the embeddings: E2Rank, https://arxiv.org/abs/2510.22733, table of ablations.
    """

    def check(self) -> None:
        weight, replay_loss = self.loss.replay_weight, self.loss.replay_loss
        if weight > 0 and self.replay is None:
            raise ValueError("loss.replay_weight > 0 needs replay_datasets=[…], such as the data of stage one")
        if weight == 0 and self.replay is not None:
            raise ValueError("replay_datasets is set, but loss.replay_weight is 0; set it to a value from 0.1 to 1")
        if isinstance(replay_loss, InBatchLoss) and self.replay is not None:
            self.replay_loss = replay_loss
            in_batch.check_loader(replay_loss, self.replay, "replay_dataloader")

    def prepare(self, step: int) -> Prepared:
        pairs = super().prepare(step)
        if self.replay is None:
            return pairs
        assert isinstance(pairs, Update)
        groups = self.replay.groups(step)
        inputs = self.policy.inputs
        replayed = in_batch.prepare(self.replay_loss, inputs, self.replay.table, groups, self.settings.token_budget)
        if self.loss.prior_weight and isinstance(self.policy, EmbeddingModel):
            replayed = replace(replayed, similarity=self.policy.topic_similarity)
        return ReplayedUpdate(pairs, replayed)

    def begin(self, update: Prepared) -> Prepared:
        """Adds the global quantities to both updates. Only the texts of the pairs are regularised."""
        if not isinstance(update, ReplayedUpdate):
            return super().begin(update)
        pairs = super().begin(update.pairs)
        assert isinstance(pairs, Update)
        return replace(update, pairs=pairs)

    def compute_loss(self, batch: Batch) -> LossOutput:
        """The loss of the scores. With loss.prior_weight, it has two terms: the scores without the prior, and the priors."""
        loss = self.loss
        if not (loss.prior_weight and isinstance(loss, RankPOLoss) and isinstance(self.policy, EmbeddingModel)):
            return super().compute_loss(batch)
        scores, priors = self.policy.score_parts(self.model(batch.sequences), batch)
        return loss(scores, batch.labels, priors=priors)

    def backward(self, update: Prepared, last: bool = True) -> None:
        if not isinstance(update, ReplayedUpdate):
            super().backward(update, last)
            return
        output, value = in_batch.backward(
            self.replay_loss,
            self.model,
            update.replayed,
            self.strategy,
            scale=self.loss.replay_weight,
            last=False,
        )
        self.running.add_sum("loss", self.loss.replay_weight * value)
        self.record(output, value, update.replayed.denominators, prefix="replay/")
        super().backward(update.pairs, last)
