"""Trainer for KTO: unpaired completions, and one reference point for the whole update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rankpo.data.loaders.ranking import Group
from rankpo.data.loaders.unpaired_preference import UnpairedPreferenceDataLoader, mismatched
from rankpo.losses.kto import BALANCED, KTOLoss, reference_point
from rankpo.runs import processes
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.update import Change, MicroBatch, Prepared, Update


@dataclass(frozen=True)
class UnpairedUpdate(Update):
    """An update with this rank's micro-batches of mismatched prompts and completions."""

    mismatched: Sequence[MicroBatch]

    def with_inputs(self, change: Change) -> Self:
        mismatched = [item.with_inputs(change) for item in self.mismatched]
        return replace(super().with_inputs(change), mismatched=mismatched)


class UnpairedPreferenceTrainer(BasicTrainer):
    """Trains kto and kto-zero.

    The trainer measures the reference point once per update, over all ranks and micro-batches, with the weights at the
    start of the update. The authors' code measures it per micro-batch, so its value depends on the micro-batch size.
    """

    loss: KTOLoss
    loader: UnpairedPreferenceDataLoader

    def check(self) -> None:
        if not isinstance(self.loader, UnpairedPreferenceDataLoader):
            raise ValueError(
                f"{type(self.loss).__name__} needs one candidate per group; set dataloader=unpaired_preference"
            )
        self.point: Tensor | None = None
        self._warn_of_weights()
        if self.loss.needs_reference_point:
            step = self.loader.first_update_of_one_prompt(self.total_steps)
            if step is not None:
                self._mismatched(step, self.loader.groups(step))

    def _warn_of_weights(self) -> None:
        desirable, undesirable = self.loader.counts()
        balance = self.loss.balance(desirable, undesirable)
        low, high = BALANCED
        if balance is None or not low <= balance <= high * (1 + 1e-9):
            kinds = f"{desirable} desirable and {undesirable} undesirable completions"
            shown = "one kind is missing" if balance is None else f"weights times counts are {balance:.3g} : 1"
            self.logger.say(
                f"{kinds}: {shown}; the KTO paper recommends 1:1 to 4:3. "
                f"Set loss.desirable_weight in {_advised(self.loss, desirable, undesirable)}."
                if balance is not None
                else f"{kinds}: {shown}; KTO needs both kinds."
            )

    def _mismatched(self, step: int, groups: Sequence[Group]) -> list[Group]:
        pairs = mismatched(groups)
        if not pairs:
            queries = np.asarray(self.loader.table.query)[self.loader.items[:, 0]]
            if len(np.unique(queries)) == 1:
                raise ValueError("all items of the data have one prompt, and KTO's reference point needs two")
            raise ValueError(
                f"update {step + 1} has one prompt only, and KTO's reference point needs two; raise trainer.batch_size "
                f"(now {self.settings.batch_size}) or choose one whose last update of an epoch is larger"
            )
        return pairs

    def prepare(self, step: int) -> Prepared:
        update = super().prepare(step)
        if not self.loss.needs_reference_point:
            return update
        assert isinstance(update, Update)
        pairs = self._mismatched(step, self.loader.groups(step))
        return UnpairedUpdate(**vars(update), mismatched=self.micro_batches(pairs))

    def begin(self, update: Prepared) -> Prepared:
        if isinstance(update, UnpairedUpdate):
            ratios = torch.zeros(2, dtype=torch.float64, device=self.policy.device)  # sum and count
            for item in update.mismatched:
                ratios += self._log_ratios(item) if item.counts else 0 * self._log_ratios(item)
            total, count = processes.sum_over_ranks(ratios)
            mean = (total / count).float()
            self.point = reference_point(mean[None])
            self.running.add("kl/mismatched", mean)
        return super().begin(update)

    @torch.no_grad()
    def _log_ratios(self, item: MicroBatch) -> Tensor:
        """Returns the sum of h over a micro-batch and its count, [2]. All ranks must call it, for sharded weights."""
        assert self.reference is not None
        batch = item.batch.to(self.policy.device)
        self.policy.eval()
        try:
            scores = self.policy.score(self.model(batch.sequences), batch)
        finally:
            self.policy.train()
        ratios = self.loss.log_ratios(scores, self.reference.scores(batch)).double()
        return torch.stack([ratios.sum(), ratios.new_full((), ratios.numel())])

    def loss_arguments(self) -> Mapping[str, object]:
        return {"point": self.point}


def _advised(loss: KTOLoss, desirable: int, undesirable: int) -> str:
    unit = loss.undesirable_weight * undesirable / desirable
    return f"[{BALANCED[0] * unit:.2f}, {BALANCED[1] * unit:.2f}]"
