"""Trainer for contrastive losses, either in batch with a gradient cache or on each query's own candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankpo.data.loaders.ranking import Group
from rankpo.losses.in_batch import InBatchLoss
from rankpo.models.vectors import GivesVectors
from rankpo.trainers import in_batch
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.regularisation import Regularisation, texts_of
from rankpo.trainers.update import Prepared
from rankpo.types import Batch


class ContrastiveTrainer(BasicTrainer):
    """Trains losses on the texts of a whole update over all ranks, or, with negatives=own, on each query alone."""

    loss: InBatchLoss
    policy: GivesVectors

    @property
    def _in_batch(self) -> bool:
        return self.loss.in_batch_wanted

    def check(self) -> None:
        in_batch.check_loader(self.loss, self.loader.current, "dataloader")
        if self.teacher is not None:
            self.loss.check_sizes(self.policy.dim, self.teacher.dim)

    def prepare(self, step: int) -> Prepared:
        if not self._in_batch:
            return super().prepare(step)
        groups = self.loader.groups(step)
        inputs, table, max_tokens = self.policy.inputs, self.loader.table, self.settings.token_budget
        update = in_batch.prepare(self.loss, inputs, table, groups, max_tokens, self.teacher)
        counts = self.policy.counts(update.batch.sequences)
        parts = "parts" in self.loss.needs
        return replace(
            update,
            counts=counts,
            similarity=self.policy.part_similarities if parts else self.policy.similarity,
            attention_tokens=self._attention_tokens(max_tokens),
        )

    def _attention_tokens(self, max_tokens: int) -> int:
        """The tokens whose attention outputs a gradient cache keeps. Gradient checkpointing computes attention once more
        in the backward pass, where nothing is kept."""
        return 0 if self.settings.gradient_checkpointing else in_batch.KEPT * max_tokens

    def largest_whole_group(self) -> int:
        """In batch, the texts of an update are divided one by one."""
        return 0 if self._in_batch else super().largest_whole_group()

    def begin(self, update: Prepared) -> Prepared:
        sparsity = self.policy.sparsity
        if sparsity is None or not isinstance(update, in_batch.InBatchUpdate):
            return super().begin(update)
        apart = not update.shared
        texts = texts_of([update.batch], self.policy.device, over_ranks=apart)
        return replace(
            update,
            denominators={**update.denominators, **sparsity.denominators(*texts)},
            regularisation=Regularisation(sparsity, self.regularisation_factor, over_ranks=apart),
        )

    def collate(self, groups: Sequence[Group]) -> Batch:
        known = "positives" in self.loss.knows
        batch = self.policy.inputs.collate(self.loader.table, groups, with_positives=known, reference=self.stored)
        return replace(batch, labels=replace(batch.labels, mask=self.loss.own_mask(batch)))

    def backward(self, update: Prepared, last: bool = True) -> None:
        if not isinstance(update, in_batch.InBatchUpdate):
            super().backward(update, last)
            return
        output, value = in_batch.backward(self.loss, self.model, update, self.strategy, last=last)
        self.record(output, value, update.denominators)

    def loss_value(self, update: Prepared) -> float:
        if not isinstance(update, in_batch.InBatchUpdate):
            return super().loss_value(update)
        return in_batch.loss_value(self.loss, self.model, update)
