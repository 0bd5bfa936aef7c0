"""The start model of a training run: the source of reference scores, and of teacher embeddings for losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from rankpo.errors import ConfigError
from rankpo.losses.in_batch import InBatchLoss
from rankpo.models import reference
from rankpo.models.loading import LoadingError
from rankpo.trainers.teacher import Teaching, teacher_embeddings

if TYPE_CHECKING:
    import numpy as np

    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.data.table import ExampleTable
    from rankpo.losses.base import Loss
    from rankpo.models.base import RankingModel
    from rankpo.models.reference import Reference
    from rankpo.models.vectors import GivesVectors
    from rankpo.trainers.teacher import TeacherEmbeddings


@dataclass(kw_only=True)
class StartModel:
    """The model before its first update.

    autocast: the autocast context of the policy. whole: whether one table holds all training data; scores that an
    earlier run stored can be used only then. streamed: whether the data is read in windows.
    """

    experiment: Experiment
    model: RankingModel
    say: Callable[[str], None]
    autocast: Callable[[], AbstractContextManager[None]]
    whole: bool = True
    streamed: bool = False
    _live: Reference | None = field(default=None, init=False)  # A copy of the model that all losses share.

    def reference(
        self, loss: Loss, table: ExampleTable, training: bool = True
    ) -> tuple[Reference | None, np.ndarray | None]:
        """The source of reference scores of a loss, and the stored scores if they are the source.

        training: whether the table holds the training data, whose scores can be stored and loaded.
        """
        experiment = self.experiment
        if "reference" not in loss.needs:
            return None, None
        asked = experiment.load_reference_logprobs or experiment.cache_reference_logprobs
        if asked and not self.whole:
            raise ConfigError(
                [
                    "stored reference scores need one loss for all data, and datasets have their own losses here; remove "
                    "trainer.cache_reference_logprobs and trainer.load_reference_logprobs"
                ]
            )
        if experiment.load_reference_logprobs is not None and training:
            scores = reference.load_scores(experiment.load_reference_logprobs, table, self.model.settings, self.say)
            return reference.StoredReference(), scores
        chosen = self._chosen(loss)
        if chosen == "adapters":
            return reference.AdapterReference(self.model), None
        if chosen == "live":
            self._live = self._live or reference.LiveReference(self.model)
            return self._live, None
        scores = reference.stored_scores(self.model, table, experiment.cache_dir, self.say, self.autocast)
        if experiment.cache_reference_logprobs and training:
            place = experiment.run_dir / reference.FILE
            reference.save_scores(place, scores, table, self.model.settings, self.say)
        return reference.StoredReference(), scores

    def _chosen(self, loss: Loss) -> str:
        """The value of trainer.reference, with `auto` replaced by the choice for this loss."""
        experiment = self.experiment
        if experiment.settings.reference != "auto":
            return experiment.settings.reference
        live = "live" if self.streamed or "live_reference" in loss.needs_with(experiment.model.gives) else "stored"
        # Adapters that are continued from an earlier run belong to the start model: disabling them would change it.
        fresh = self.model.has_adapters and not experiment.model.continues_adapters
        return "adapters" if fresh and not experiment.cache_reference_logprobs else live

    def teacher(self, loss: Loss, table: ExampleTable, datasets: Sequence[Dataset]) -> TeacherEmbeddings | None:
        """Embeddings of the data by the guide or teacher model of the loss, or None if the loss has none."""
        if not isinstance(loss, InBatchLoss) or "teacher" not in loss.knows:
            return None
        if self.streamed:
            raise ConfigError(
                [
                    f"{type(loss).__name__} needs embeddings of all texts by another model; set streaming=false, or a limit"
                ]
            )
        start = Teaching(
            model=cast("GivesVectors", self.model),
            table=table,
            datasets=datasets,
            cache_dir=self.experiment.cache_dir,
        )
        try:
            return teacher_embeddings(loss.teacher_model, start, self.say)
        except LoadingError as error:
            raise ConfigError([f"loss: {error}"]) from error
