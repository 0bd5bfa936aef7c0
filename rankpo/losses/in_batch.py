"""InBatchLoss: the base class of losses that compare the embeddings of a whole update, over all processes."""

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
    """Base of losses that read the texts of all queries of an update at once.

    The trainer encodes the update in parts of at most max_tokens, passes all embeddings to `in_batch`, and
    backpropagates their gradient through the model part by part (gradient cache). Every rank computes the losses of its
    own queries.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vectors"})

    @property
    def in_batch_wanted(self) -> bool:
        """Whether the loss compares with other queries; False: `__call__` computes each query separately."""
        return True

    @property
    def over_all_ranks(self) -> bool:
        """Whether the loss compares the texts of all ranks; False: each rank compares its own texts."""
        return True

    @property
    def knows(self) -> frozenset[str]:
        """The fields of a batch that the loss requires beside texts and labels, out of `KNOWN`: `Batch.positives`,
        `Batch.judged` with `Batch.grades`, `Batch.teacher`."""
        return frozenset()

    @property
    def teacher_model(self) -> str | None:
        """The folder of the model that computes `Batch.teacher`; None: the model that the run starts from."""
        return None

    def check_sizes(self, model: int, teacher: int) -> None:
        """Raises ValueError if the loss cannot compare embeddings of these sizes of model and teacher."""

    def own_mask(self, batch: Batch) -> Tensor:
        """Mask [B, G] of the candidates that `__call__` receives."""
        return batch.labels.mask

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights [B] of each term of `in_batch` for all queries of an update, available before encoding."""
        return {"loss": torch.ones(len(batch), device=batch.candidates.device)}

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        """Losses [b] of `queries`, indices into the update on the CPU, or None for all B.

        embeddings: of all sequences of the update, [N, D] in the rows of batch.sequences, or `Vectors` where a text may
        have several, of length 1 if scores are cosines. batch: the update over all ranks. similarity: the model's
        score of queries and candidates. Losses and gradients add up over disjoint `queries` that cover the update.
        """
        raise TypeError(f"{type(self).__name__} does not compare embeddings")
