"""Models that give vectors, for the tasks that encode texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from rankpo.errors import ConfigError
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.retrieval.quantisation import BINARY, FLOATS
from rankpo.tasks.models import build_model
from rankpo.tasks.seeds import seed_everything
from rankpo.tasks.session import Session, require

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.vectors import GivesVectors


def vector_model(experiment: Experiment, session: Session, who: str = "this task") -> GivesVectors:
    """The model of the config, ready to encode. Raises ConfigError before weights are loaded if it gives no vectors.

    who: the name of the task or setting that needs vectors, for the message.
    """
    require(experiment.model, frozenset({"vectors"}), who)
    seed_everything(experiment.seed)
    model = build_model(experiment.model, experiment.explicit, session.logger.say)
    return session.prepared(cast("GivesVectors", model))


def check_dtype(given: str, dtype: str, model: GivesVectors, say: Callable[[str], None]) -> None:
    """Raises ConfigError if the vectors of the model cannot be stored as `dtype`. given: the key and value of the task."""
    if dtype in FLOATS:
        return
    if model.stored_form != "dense":
        raise ConfigError(
            [
                f"{given} is for models with one dense vector per text, and kind={model.kind} stores {model.stored_form} "
                f"vectors; use {' or '.join(FLOATS)}"
            ]
        )
    if dtype not in BINARY or model.metric == "cosine":
        return
    if isinstance(model, EmbeddingModel) and model.prior is not None:
        raise ConfigError(
            [f"{given} keeps only signs, and the last dimension of this model is its prior, a number; use int8"]
        )
    say(f"warning: {given} keeps only signs, and model.normalize=false gives vectors whose lengths count")
