"""The reference scores and the teacher embeddings of a training run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, cast

from rankpo.errors import ConfigError
from rankpo.losses.in_batch import InBatchLoss
from rankpo.models import reference
from rankpo.models.loading import LoadingError
from rankpo.trainers.teacher import Teaching, teacher_embeddings

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.table import ExampleTable
    from rankpo.models.base import RankingModel
    from rankpo.models.reference import Reference
    from rankpo.models.vectors import GivesVectors
    from rankpo.trainers.teacher import TeacherEmbeddings


def make_reference(
    experiment: Experiment,
    model: RankingModel,
    table: ExampleTable,
    say: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager[None]],
) -> tuple[Reference | None, object]:
    """The source of reference scores, and the stored ones where that is the source. autocast: the policy's."""
    if "reference" not in experiment.loss.needs:
        return None, None
    if experiment.load_reference_logprobs is not None:
        scores = reference.load_scores(experiment.load_reference_logprobs, table, model.settings, say)
        return reference.StoredReference(), scores
    chosen = experiment.settings.reference
    if chosen == "auto":
        live = "live" if "live_reference" in experiment.loss.needs_with(experiment.model.gives) else "stored"
        # Adapters of an earlier run belong to the start model, so disabling them would give a different reference.
        fresh = model.has_adapters and not getattr(experiment.model, "load_lora_from", None)
        chosen = "adapters" if fresh and not experiment.cache_reference_logprobs else live
    if chosen == "adapters":
        return reference.AdapterReference(model), None
    if chosen == "live":
        return reference.LiveReference(model), None
    scores = reference.stored_scores(model, table, experiment.cache_dir, say, autocast)
    if experiment.cache_reference_logprobs:
        reference.save_scores(experiment.run_dir / reference.FILE, scores, table, model.settings, say)
    return reference.StoredReference(), scores


def make_teacher(
    experiment: Experiment, model: RankingModel, table: ExampleTable, say: Callable[[str], None]
) -> TeacherEmbeddings | None:
    """Embeddings of the training data by the guide or teacher of the loss, or None where it has none."""
    loss = experiment.loss
    if not isinstance(loss, InBatchLoss) or "teacher" not in loss.knows:
        return None
    start = Teaching(
        model=cast("GivesVectors", model), table=table, datasets=experiment.datasets, cache_dir=experiment.cache_dir
    )
    try:
        return teacher_embeddings(loss.teacher_model, start, say)
    except LoadingError as error:
        raise ConfigError([f"loss: {error}"]) from error
