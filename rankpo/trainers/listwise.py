"""Trainer for losses on lists of candidates: pointwise, pairwise, listwise and distillation, with any model."""

from __future__ import annotations

import numpy as np

from rankpo.data.loaders.listwise_prompts import ListwisePromptDataLoader
from rankpo.models.listwise.model import ListwiseModel
from rankpo.trainers.basic import BasicTrainer


class ListwiseTrainer(BasicTrainer):
    """Trains any loss on scores [B, G] with graded relevance. Losses on teacher scores declare the need `teacher`."""

    main_term = "ranking"

    def check(self) -> None:
        if "teacher" in self.loss.needs and not self.loader.table.has_teacher:
            raise ValueError(
                f"{type(self.loss).__name__} needs a teacher score for every candidate, and some candidates have none; "
                "add scores to the records and set datasets.<name>.scores_are=teacher"
            )
        if isinstance(self.policy, ListwiseModel):
            self._check_prompts(self.policy)

    def _check_prompts(self, policy: ListwiseModel) -> None:
        """Raises ValueError if the loader sorts by relevance, because the order in the prompt would reveal the answer."""
        loader = self.loader.current
        if not isinstance(loader, ListwisePromptDataLoader):
            raise ValueError(
                f"{type(loader).__name__} sorts candidates by relevance, which reveals the answer to a listwise "
                "reranker; add dataloader=listwise_prompts"
            )
        window = policy.settings.window
        longest = int(np.diff(self.loader.table.offsets).max())
        if min(loader.max_candidates, longest) > window:
            raise ValueError(
                f"dataloader.max_candidates={loader.max_candidates} exceeds model.window={window}, the passages of a "
                f"prompt, and a list has {longest}; set dataloader.max_candidates={window}"
            )
        if "reference" in self.loss.needs and self.stored is not None:
            raise ValueError(
                "scores of a listwise reranker cannot be stored, because they depend on the order of the prompt, which "
                "each epoch draws again; set trainer.reference=live"
            )
        self.logger.say(policy.inputs.shown(self.loader.table, self.loader.groups(0)[0]))
