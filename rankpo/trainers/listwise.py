"""Learning to rank on lists of candidates: pointwise, pairwise, listwise and distillation losses on any model."""

from __future__ import annotations

from rankpo.trainers.basic import BasicTrainer


class ListwiseTrainer(BasicTrainer):
    """Any loss on [B, G] scores with graded relevance; losses that read teacher scores say so."""

    main_term = "ranking"

    def check(self) -> None:
        if getattr(self.loss, "needs_teacher", False) and not self.loader.table.has_teacher:
            raise ValueError(
                f"{type(self.loss).__name__} learns from teacher scores, and the data has none for some candidate; "
                "give records with scores and set datasets.<name>.scores_are=teacher"
            )
