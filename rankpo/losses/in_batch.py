"""InBatchLoss: the interface of losses that compare the embeddings of a whole update, over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import Loss
from rankpo.losses.vectors import Similarity, inner_products
from rankpo.types import Batch, LossOutput, Vectors

KNOWN = frozenset({"positives", "grades", "teacher"})


@dataclass(frozen=True, kw_only=True)
class InBatchLoss(Loss):
    """Base of the losses that see the texts of all queries of an update at once.

    The trainer encodes the update in parts under max_tokens, gives `in_batch` all embeddings, and takes the gradient
    at them back through the model part by part (gradient cache). Every rank takes the losses of its own queries.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vectors"})

    @property
    def in_batch_wanted(self) -> bool:
        """Whether the loss compares with other queries; False: each query by itself, by `__call__`."""
        return True

    @property
    def over_all_ranks(self) -> bool:
        """Whether the texts of all ranks are compared, or those of each rank by themselves."""
        return True

    @property
    def knows(self) -> frozenset[str]:
        """What a batch must carry beside texts and labels, out of `KNOWN`: `Batch.positives`, `Batch.judged` and
        `Batch.grades`, `Batch.teacher`."""
        return frozenset()

    @property
    def teacher_model(self) -> str | None:
        """The folder of the model that gives `Batch.teacher`; None: the model that the run starts from."""
        return None

    def check_sizes(self, model: int, teacher: int) -> None:
        """Raises ValueError for embedding sizes of model and teacher that the loss cannot compare."""

    def own_mask(self, batch: Batch) -> Tensor:
        """Mask [B, G] of the candidates that `__call__` is shown."""
        return batch.labels.mask

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights [B] of each term of `in_batch` for all queries of an update, known before any text is encoded."""
        return {"loss": torch.ones(len(batch), device=batch.candidates.device)}

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        """Losses [b] of `queries`, indices into the update, or None for all B.

        embeddings: of all sequences of the update, [N, D] in the rows of batch.sequences, or `Vectors` where a text may
        have several; already of length 1 if scores are cosines. batch: the whole update, over all ranks. similarity:
        how the model scores queries with candidates. The sum over disjoint `queries` that cover the
        update is the loss of the whole, and so is its gradient.
        """
        raise TypeError(f"{type(self).__name__} does not compare embeddings")
