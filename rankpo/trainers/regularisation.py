"""Regularisation of sparse vectors in one update, with means over all texts that precede the first backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from rankpo.losses.sparsity import Activity, Sparsity
from rankpo.models.base import RankingModel
from rankpo.runs import processes
from rankpo.trainers.update import MicroBatch, Update
from rankpo.types import Batch, LossOutput


@dataclass(frozen=True)
class Regularisation:
    """The terms that `Sparsity` adds to the loss of one update.

    factor: multiplies the weights of the terms. activity: the activity of the whole update; None computes it from the
    batch, which is then this rank's whole update. over_ranks: whether the update consists of the batches of all ranks.
    """

    sparsity: Sparsity
    factor: float
    activity: Activity | None = None
    over_ranks: bool = False

    def added(self, output: LossOutput, rows: Tensor, batch: Batch, queries: Tensor | None = None) -> LossOutput:
        """Returns the output plus the terms of the batch's queries, see `Sparsity.added`. All ranks must call it."""
        activity = self.activity
        if activity is None:
            activity = self.sparsity.activity(rows.detach(), batch)
            if self.over_ranks:
                activity = activity.over_ranks(processes.sum_over_ranks)
        return self.sparsity.added(output, rows, batch, activity, self.factor, queries)


def of_update(
    sparsity: Sparsity, factor: float, model: nn.Module, policy: RankingModel, update: Update
) -> tuple[Regularisation, Update]:
    """Returns the regularisation of an update, and the update with its denominators. All ranks must call it."""
    counted = [item.batch for item in update.micro_batches if item.counts]
    texts = texts_of(counted, policy.device, over_ranks=True)
    alone = processes.world_size() == 1 and len(update.micro_batches) == 1
    activity = None if alone else measured(sparsity, model, policy, update.micro_batches)
    denominators = {**update.denominators, **sparsity.denominators(*texts)}
    return Regularisation(sparsity, factor, activity), replace(update, denominators=denominators)


@torch.no_grad()
def measured(sparsity: Sparsity, model: nn.Module, policy: RankingModel, parts: Sequence[MicroBatch]) -> Activity:
    """Returns the activity of all micro-batches of all ranks, from a forward pass over each. model: the wrapped policy."""
    found = []
    with policy.evaluating():
        for item in parts:
            batch = item.batch.to(policy.device)
            activity = sparsity.activity(model(batch.sequences).float(), batch)
            found.append(activity if item.counts else Activity(*(0 * part for part in vars(activity).values())))
    return reduce(add, found).over_ranks(processes.sum_over_ranks)


def texts_of(batches: Sequence[Batch], device: torch.device, over_ranks: bool) -> tuple[int, int]:
    """Returns the numbers of queries and candidates of the batches. over_ranks: sums over the ranks; all must call.

    With several ranks, reading the sum waits for the device.
    """
    counts = [[len(batch), int(batch.on_cpu.labels.mask.sum())] for batch in batches]
    texts = torch.tensor(counts or [[0, 0]]).sum(0)
    if over_ranks and processes.world_size() > 1:
        texts = processes.sum_over_ranks(texts.to(device, non_blocking=True))
    queries, candidates = texts.tolist()
    return queries, candidates
