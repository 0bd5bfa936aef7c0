"""Choice of an evaluator by the dataset's declarations and the outputs of the model's kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankpo.data.shape import Evaluable
from rankpo.evaluation.base import Evaluator, Say
from rankpo.evaluation.completions import LikelihoodEvaluator, RewardEvaluator
from rankpo.evaluation.lists import ListwiseEvaluator
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.evaluation.retrieval import RetrievalEvaluator
from rankpo.evaluation.scored_pairs import ScoredPairsEvaluator
from rankpo.losses.base import Loss
from rankpo.losses.sft import SFTLoss

OF_COMPLETIONS = frozenset({"token_logps", "rewards"})  # given by kinds that score completions
DEEPEST = 100  # Documents per query if no metric has a cut-off.


@dataclass(frozen=True, kw_only=True)
class Choice:
    """metrics: of rankings. top_k: documents per query, raised to the largest cut-off of a metric."""

    cache_dir: Path
    say: Say
    metrics: Sequence[str]
    top_k: int = 100

    def evaluator(self, dataset: Evaluable, gives: frozenset[str], loss: Loss) -> Evaluator:
        """Returns the evaluator of a dataset. gives: outputs of the model's kind. loss: defines rewards of completions."""
        if gives & OF_COMPLETIONS:
            return self._of_completions(dataset, loss)
        judgements = dataset.judgements
        if judgements is not None and "vectors" in gives:
            return RetrievalEvaluator(judgements, self.cache_dir, self.metrics, self.say, top_k=self._depth())
        shape = dataset.shape
        if shape.mostly_single:
            return ScoredPairsEvaluator(dataset, self.cache_dir, self.say)
        if shape.has_lists:
            return ListwiseEvaluator(dataset, self.cache_dir, self.metrics, self.say)
        return PreferenceEvaluator(dataset, self.cache_dir, self.say)

    def _of_completions(self, dataset: Evaluable, loss: Loss) -> Evaluator:
        """Returns the likelihood if the loss is sft or the data has single completions, else preferences with rewards."""
        if isinstance(loss, SFTLoss) or not dataset.shape.has_pairs:
            return LikelihoodEvaluator(dataset, self.cache_dir, self.say, loss)
        return RewardEvaluator(dataset, self.cache_dir, self.say, loss, paired=loss.on_pairs)

    def _depth(self) -> int:
        return max(
            self.top_k, max((int(name.rpartition("@")[2]) for name in self.metrics if "@" in name), default=DEEPEST)
        )
