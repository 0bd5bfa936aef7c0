"""Models that give vectors, for the tasks that encode texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

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
