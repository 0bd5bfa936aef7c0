"""Pooled states of texts under a frozen backbone: each distinct sequence is computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rankpo.data.batch import select
from rankpo.models.base import RankingModel
from rankpo.types import Sequences


class PooledStates:
    """compute: gives the pooled states [N, W] of sequences. model: is put into evaluation mode for that.

    Memory holds W numbers of four bytes for each distinct sequence, on the CPU.
    """

    def __init__(self, compute: Callable[[Sequences], Tensor], model: RankingModel) -> None:
        self._compute, self._model = compute, model
        self._known: dict[bytes, Tensor] = {}

    def forget(self) -> None:
        """Drops what is known, since the weights or the pooled layers have changed."""
        self._known.clear()

    def of(self, sequences: Sequences) -> Tensor:
        """[N, W] on the device of the model."""
        keys = _keys(sequences)
        if not keys:
            return self._compute(sequences)
        missing = {key: row for row, key in enumerate(keys) if key not in self._known}
        fresh: dict[bytes, Tensor] = {}
        if missing:
            with torch.no_grad(), self._model.evaluating():
                found = self._compute(select(sequences, np.array(list(missing.values())))).float().cpu()
            fresh = dict(zip(missing, found, strict=True))
            if not isinstance(found, FakeTensor):  # The states of a dry run have no data.
                self._known.update(fresh)
        rows = [fresh[key] if key in fresh else self._known[key] for key in keys]
        return torch.stack(rows).to(self._model.device)


def _keys(sequences: Sequences) -> list[bytes]:
    """The tokens of each sequence, and its number of tokens that are not pooled."""
    ids = sequences.input_ids.cpu().numpy()
    ends = np.cumsum(sequences.lengths.numpy())
    starts = ends - sequences.lengths.numpy()
    skipped = np.zeros(len(starts), int) if sequences.prefixes is None else sequences.prefixes[:, 1].numpy()
    return [ids[a:b].tobytes() + int(c).to_bytes(4, "little") for a, b, c in zip(starts, ends, skipped, strict=True)]
