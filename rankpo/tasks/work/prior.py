"""The work of task=prior: features of the judged passages, the fit, and the folder of the model with its prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankpo.data.relevance import UNKNOWN
from rankpo.data.table import ExampleTable, open_table
from rankpo.errors import ConfigError
from rankpo.evaluation.preferences import ordered_pairs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.prior_fit import Fitted, JudgedPairs, fit_prior
from rankpo.models.vectors import encode_table
from rankpo.tasks.description import describe
from rankpo.tasks.vector_models import vector_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.prior import Prior

FINAL = "FINAL"


def run(task: Prior, experiment: Experiment) -> dict[str, object]:
    """Returns the table's row."""
    target = Path(task.output) / FINAL
    if not experiment.datasets:
        raise ConfigError(["datasets is empty; add a dataset of judged pairs, such as the output of task=annotate"])
    if target.exists() and not experiment.overwrite:
        raise ConfigError([f"{target} already exists; set overwrite=true or another exp_name"])
    session = task.open(experiment)
    say = session.logger.say
    model = vector_model(experiment, session, "task=prior")
    if not isinstance(model, EmbeddingModel) or model.prior is None:
        raise ConfigError(
            ["task=prior needs the layers of the prior; set model.prior_layers, such as model.prior_layers=[2,3,4]"]
        )
    table = open_table(experiment.cache_dir, experiment.datasets, model.inputs.pieces(), say)
    features, pairs = judged(model, table)
    try:
        fitted = fit_prior(features, pairs, task.ridges, task.folds, experiment.seed)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    weight = weight_of(fitted, task.weight)
    model.set_prior(fitted.weights, weight)
    difference = experiment.model.save(target, model, describe(experiment, {}))
    say(f"{target} written. Check: transformers loaded it, and its outputs differ by at most {difference:.0e}.")
    row = {
        "folder": str(target),
        "pairs": len(pairs),
        "passages": len(features),
        "ridge": fitted.ridge,
        "weight": weight,
        "agreement, unseen": fitted.held_out_accuracy,
        "of the prior alone": fitted.held_out_prior,
    }
    session.logger.table([row])
    return row


def weight_of(fitted: Fitted, asked: float | None) -> float:
    """λ of the prior: `asked`, or by the fit for None. Raises ConfigError if the fit gives no positive weight."""
    if asked is not None:
        return asked
    if not fitted.slope > 0:
        raise ConfigError(
            [
                f"the fit gives no weight, because the judge's preferences do not rise with the model's scores (slope "
                f"{fitted.slope:.3g}); set task.weight, such as 0.05"
            ]
        )
    return 1 / fitted.slope


def judged(model: EmbeddingModel, table: ExampleTable) -> tuple[Tensor, JudgedPairs]:
    """Features of all passages of the table's pairs, [N, K·H], and the pairs. Raises ConfigError without pairs."""
    owners, slots = all_pairs(table)
    if not len(slots):
        raise ConfigError(
            ["datasets hold no pair with different relevance; task=prior needs preference pairs or ranked lists"]
        )
    rows, places = np.unique(np.asarray(table.candidates)[slots], return_inverse=True)
    queries, of_query = np.unique(np.asarray(table.query)[owners], return_inverse=True)
    vectors, features = model.frozen_parts(table, rows)
    asked = encode_table(model, table, queries, "query").rows[:, : model.topic_dim]
    place = torch.from_numpy(places.reshape(slots.shape))
    scores = torch.einsum("pd,pcd->pc", asked[torch.from_numpy(of_query)], vectors[place])
    stated = np.asarray(table.confidence)[owners]
    confidence = torch.from_numpy(np.clip(np.where(np.isnan(stated), 1.0, stated), 0.5, 1.0))
    return features, JudgedPairs(place[:, 0], place[:, 1], confidence, scores[:, 0] - scores[:, 1])


def all_pairs(table: ExampleTable) -> tuple[np.ndarray, np.ndarray]:
    """The examples of all pairs with different relevance, [P], and their slots, [P, 2], the preferred one first.

    Of lists, every pair counts, unless they state positives and negatives, which are no order of a judge.
    """
    owners, slots = ordered_pairs(table)
    found_owners, found_slots = [owners], [slots]
    relevance, stated = np.asarray(table.relevance), np.asarray(table.stated)
    for example in np.flatnonzero(np.diff(table.offsets) > 2).tolist():
        own = np.arange(table.offsets[example], table.offsets[example + 1])
        if (stated[own] == UNKNOWN).any():
            better, worse = np.nonzero(relevance[own][:, None] > relevance[own][None, :])
            found_owners.append(np.full(len(better), example))
            found_slots.append(np.stack([own[better], own[worse]], axis=1))
    return np.concatenate(found_owners), np.concatenate(found_slots)
