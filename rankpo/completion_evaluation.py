"""What a causal language model is worth on fixed data: preference for chosen completions, and how likely good ones are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.completion_loaders import best_slots
from rankpo.data.text_store import Dataset
from rankpo.evaluation import Evaluator, PreferenceEvaluator, Result, Say, slot_scores
from rankpo.losses.base import Loss
from rankpo.losses.sft import SFTLoss

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel
    from rankpo.models.causal_lm import CausalLanguageModel

PEEKED = 32  # examples looked at to tell pairs from single completions


def completion_evaluator(dataset: Dataset, loss: Loss, cache_dir: str | Path, say: Say) -> Evaluator:
    """Likelihood where the loss is sft or the data has single completions, else preference with rewards."""
    pairs = any(len(example.candidates) == 2 for example in islice(dataset.examples(), PEEKED))
    if isinstance(loss, SFTLoss) or not pairs:
        return LikelihoodEvaluator(dataset, cache_dir, say)
    rewards = float(getattr(loss, "beta", 1.0)) if loss.needs_reference else None
    return RewardEvaluator(dataset, cache_dir, say, beta=rewards)


class RewardEvaluator(PreferenceEvaluator):
    """Agreement with pairs by log-probability, and by reward: what the policy gained over the model it started from.

    beta: multiplies log-ratios to rewards; None for losses without a reference, which have no rewards here.
    rewards/accuracies: share of pairs whose chosen completion gained more, strictly, so 0 at the start.
    """

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say, beta: float | None) -> None:
        super().__init__(dataset, cache_dir, say)
        self.beta = beta
        self.start: np.ndarray | None = None
        if beta is not None:
            self.metrics = ("accuracy", "margin", "rewards/accuracies", "rewards/margins")

    def compare_with(self, model: RankingModel) -> None:
        if self.beta is not None:
            from rankpo.trainers.reference import stored_scores

            self.start = stored_scores(model, self.table(model.inputs.pieces()), self.cache_dir, self.say)

    def further(self, scores: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> Mapping[str, float]:
        if self.start is None or self.beta is None:
            return {}
        rewards = self.beta * (scores - self.start).astype(np.float64)
        margins = rewards[chosen] - rewards[rejected]
        return {"rewards/accuracies": float((margins > 0).mean()), "rewards/margins": float(margins.mean())}


class LikelihoodEvaluator(Evaluator):
    """Each example's best completion, as sft learns it: nats per token over all of them, and what follows from it.

    logps: mean log-probability per token, the metric to maximise; loss = -logps; perplexity = e^loss.
    """

    metrics = ("logps", "loss", "perplexity")

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say) -> None:
        self.name = dataset.name
        self.dataset = dataset
        self.cache_dir = cache_dir
        self.say = say

    def evaluate(self, model: CausalLanguageModel) -> Result:  # type: ignore[override]
        table = self.table(model.inputs.pieces())
        slots = best_slots(table)
        if not len(slots):
            raise ValueError(f"eval_datasets.{self.name} holds no desirable completion")
        pieces = model.inputs.slot_pieces(table)
        lengths = model.inputs.completion_lengths(table, [pieces[slot] for slot in slots[:, 1]])
        logps = slot_scores(model, table)[slots[:, 1]].astype(np.float64)
        mean = float(logps.sum() / lengths.sum())
        per_query = {
            table.id(int(example)): {"logps": value}
            for example, value in zip(slots[:, 0], (logps / lengths).tolist(), strict=True)
        }
        counts = {"completions": len(slots), "tokens": int(lengths.sum())}
        return Result({"logps": mean, "loss": -mean, "perplexity": exp(min(-mean, 700.0))}, per_query, counts=counts)
