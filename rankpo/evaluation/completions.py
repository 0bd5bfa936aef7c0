"""Evaluators of causal language models on fixed data: agreement with preferences, and likelihood of completions.

Every evaluation uses all data of an eval_datasets entry; `eval_datasets.NAME.limit` restricts it to a fixed part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import combinations
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rankpo.data.dataset import Dataset
from rankpo.data.loaders.completion import best_slots
from rankpo.data.relevance import IRRELEVANT, RELEVANT
from rankpo.data.table import ExampleTable
from rankpo.evaluation.base import Evaluator, Result, Say
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.losses.base import Loss
from rankpo.losses.pairs import pair_metrics
from rankpo.losses.reduction import denominators, total
from rankpo.losses.risk import kl
from rankpo.losses.token_preference import TokenPreferenceLoss, divergence_metrics
from rankpo.models.reference import StoredReference, stored_scores
from rankpo.types import Labels

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel
    from rankpo.models.causal_lm.model import CausalLanguageModel
    from rankpo.models.reference import Reference

# Omitted, since accuracy and margin are reported under other names and BCO's shift is for training data.
REPEATED = ("logps/accuracies", "logps/margins", "scores/accuracies", "scores/margins", "rewards/delta")


class Compared:
    """Log-probabilities of all completions under the model and under its start model.

    beta: multiplies their difference to rewards; 1 for losses without it, whose rewards are log-ratios in nats.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.beta = loss.reward_scale
        self.start: np.ndarray | None = None
        self.reference: Reference | None = None

    def take(
        self,
        model: RankingModel,
        table: ExampleTable,
        folder: tuple[str | Path, Say],
        autocast: Callable[[], AbstractContextManager[None]],
        reference: Reference | None,
    ) -> None:
        """Stores the reference model if the trainer has one, else the scores of the start model."""

        if "reference" not in self.loss.needs:
            return
        if reference is None or isinstance(reference, StoredReference):
            self.start = stored_scores(model, table, *folder, autocast)
        else:
            self.reference = reference

    def values(self, model: Any, table: ExampleTable) -> dict[str, np.ndarray]:
        """[slots] float32 by name: `scores`; `reference`, if there is one; divergences, if the reference model is loaded."""
        if self.reference is not None:
            return model.slot_values(table, self.reference.states, self.measures)
        found = {"scores": model.slot_scores(table)}
        return found if self.start is None else {**found, "reference": self.start}

    def depends_on(self) -> tuple[object, ...]:
        """The loss, and whether there is a reference and a loaded reference model."""
        return (self.loss, self.start is not None, self.reference is not None)

    @property
    def measures(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """Divergences by name: those of the loss, or else KL."""
        return self.loss.measures if isinstance(self.loss, TokenPreferenceLoss) else {"kl": kl}


class RewardEvaluator(PreferenceEvaluator):
    """Agreement with pairs by log-probability, and by reward, which is relative to the start model.

    Losses on pairs add `loss` and their metrics with the names in training. If the trainer has the reference model (tdpo, ra-dpo, kto, ppo, grpo; any with trainer.reference=live or adapters) `kl/…`, and
    `risk/…` of ra-dpo: sums over a completion's tokens in nats.
    rewards/accuracies: share of pairs whose chosen completion gained more, strictly, so 0 at the start.
    """

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say, loss: Loss, *, paired: bool) -> None:
        super().__init__(dataset, cache_dir, say)
        self.paired = paired
        self.compared = Compared(loss)
        if paired or "reference" in loss.needs:
            self.metrics = ("accuracy", "margin", "rewards/accuracies", "rewards/margins")

    def compare_with(self, model: RankingModel, autocast: Any, reference: Reference | None) -> None:
        table = self.table(model.inputs.pieces())
        self.compared.take(model, table, (self.cache_dir, self.say), autocast, reference)

    def depends_on(self) -> tuple[object, ...]:
        return (self.metrics, self.paired, *self.compared.depends_on())

    def values(self, model: object, table: ExampleTable) -> dict[str, np.ndarray]:
        return self.compared.values(model, table)

    def further(
        self, model: object, table: ExampleTable, values: Mapping[str, np.ndarray], pairs: np.ndarray
    ) -> Mapping[str, float]:
        loss = self.compared.loss
        columns = {name: torch.from_numpy(of_slots[pairs]) for name, of_slots in values.items()}  # [P, 2] each
        scores, reference = columns.pop("scores"), columns.pop("reference", None)
        if reference is None and ("reference" in loss.needs or not self.paired):
            return {}  # Without a reference there are no rewards.
        labels = _labels_of_pairs(model, table, pairs)
        metrics: dict[str, Tensor] = {}
        if self.paired:
            tokens = {"divergences": columns} if isinstance(loss, TokenPreferenceLoss) else {}
            output = loss(scores, labels, reference, **tokens)
            metrics.update(output.metrics)
            if not loss.initial_state():  # else its value needs the state of training
                metrics["loss"] = total(output, denominators(loss, labels))
        elif reference is not None:
            metrics.update(pair_metrics(scores, self.compared.beta * (scores - reference), labels.lengths))
        if reference is not None:
            for name, sums in columns.items():
                metrics.update(divergence_metrics(name, scores - reference, sums))
        return {name: float(value.double().mean()) for name, value in metrics.items() if name not in REPEATED}


class LikelihoodEvaluator(Evaluator):
    """Each example's best completion, as sft learns it: nats per token over all of them, and what follows from it.

    logps: mean log-probability per token, the metric to maximise; loss = -logps; perplexity = e^loss. With losses that
    have a reference also rewards of all completions: `rewards/chosen` of the desirable ones,
    `rewards/rejected` of the others, `rewards/margins` between these means, `rewards/accuracies` over all pairs of
    different relevance within an example; and `kl/…` where the trainer holds the reference model.
    """

    metrics = ("logps", "loss", "perplexity")

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say, loss: Loss) -> None:
        self.name = dataset.name
        self.dataset = dataset
        self.cache_dir = cache_dir
        self.say = say
        self.compared = Compared(loss)

    def compare_with(self, model: RankingModel, autocast: Any, reference: Reference | None) -> None:
        table = self.table(model.inputs.pieces())
        self.compared.take(model, table, (self.cache_dir, self.say), autocast, reference)

    def depends_on(self) -> tuple[object, ...]:
        return (self.metrics, *self.compared.depends_on())

    def evaluate(self, model: CausalLanguageModel) -> Result:  # type: ignore[override]
        table = self.table(model.inputs.pieces())
        slots = best_slots(table)
        if not len(slots):
            raise ValueError(f"eval_datasets.{self.name} holds no desirable completion")
        pieces = model.inputs.slot_pieces(table)
        lengths = model.inputs.completion_lengths(table, [pieces[slot] for slot in slots[:, 1]])
        values = self.compared.values(model, table)
        logps = values["scores"][slots[:, 1]].astype(np.float64)
        mean = float(logps.sum() / lengths.sum())
        per_query = {
            table.id(int(example)): {"logps": value}
            for example, value in zip(slots[:, 0], (logps / lengths).tolist(), strict=True)
        }
        counts = {"completions": len(slots), "tokens": int(lengths.sum())}
        metrics = {"logps": mean, "loss": -mean, "perplexity": exp(min(-mean, 700.0)), **self._gains(table, values)}
        return Result(metrics, per_query, counts=counts)

    def _gains(self, table: ExampleTable, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Rewards and divergences of all completions, by kind; a kind that does not occur has none."""
        if "reference" not in values:
            return {}
        further = {name: of_slots.astype(np.float64) for name, of_slots in values.items()}
        gained = self.compared.beta * (further.pop("scores") - further.pop("reference"))
        stated = np.asarray(table.stated)
        desirable, undesirable = stated == RELEVANT, stated == IRRELEVANT
        metrics = {}
        for name, of_slots in {"rewards": gained, **further}.items():
            for kind, chosen in (("chosen", desirable), ("rejected", undesirable)):
                if chosen.any():
                    metrics[f"{name}/{kind}"] = float(of_slots[chosen].mean())
            if desirable.any() and undesirable.any():
                metrics[f"{name}/margins"] = metrics[f"{name}/chosen"] - metrics[f"{name}/rejected"]
        pairs = ordered_pairs(table)
        if len(pairs):
            metrics["rewards/accuracies"] = float((gained[pairs[:, 0]] > gained[pairs[:, 1]]).mean())
        return metrics


def ordered_pairs(table: ExampleTable) -> np.ndarray:
    """[n, 2] slots of all pairs within an example, the one of larger relevance first; ties make none."""
    relevance = np.asarray(table.relevance)
    found = []
    for example in range(len(table)):
        for first, second in combinations(table.slots(example), 2):
            if relevance[first] != relevance[second]:
                found.append((first, second) if relevance[first] > relevance[second] else (second, first))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _labels_of_pairs(model: Any, table: ExampleTable, pairs: np.ndarray) -> Labels:
    """The labels of pairs [P, 2] of slots, chosen first, as the loader of pairs gives them."""
    pieces = model.inputs.slot_pieces(table)
    lengths = [model.inputs.completion_lengths(table, [pieces[slot] for slot in column]) for column in pairs.T]
    owners = np.searchsorted(np.asarray(table.offsets), pairs[:, 0], side="right") - 1
    confidence = np.nan_to_num(np.asarray(table.confidence[owners], dtype=np.float32), nan=1.0)
    return Labels(
        relevance=torch.tensor([[1.0, 0.0]]).expand(len(pairs), 2),
        mask=torch.ones(len(pairs), 2, dtype=torch.bool),
        confidence=torch.from_numpy(confidence),
        lengths=torch.from_numpy(np.stack(lengths, 1)),
    )
