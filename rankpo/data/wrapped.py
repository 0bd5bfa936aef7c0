"""WrappedDataset: the base of datasets that change the examples of another one."""

from __future__ import annotations

from collections.abc import Iterator

from rankpo.data.dataset import CollectsBadRecords, Dataset, ReportsPasses
from rankpo.data.readers.fields import BadRecord
from rankpo.data.readers.passes import PassReport
from rankpo.data.shape import Declares, EvaluationSet, declared, weight_of
from rankpo.types import Example


class WrappedDataset(Declares):
    """A wrapper of a dataset. Subclasses override `examples`, `fingerprint`, and the declarations that differ."""

    def __init__(self, dataset: Dataset) -> None:
        self.inner = dataset
        self.name = dataset.name
        self.weight = weight_of(dataset)
        self._declared = declared(dataset)
        self.collection = self._declared.collection
        self.streaming, self.window = self._declared.streaming, self._declared.window

    @property
    def report(self) -> PassReport:
        """The report of the last pass; empty if the dataset has none."""
        return self.inner.report if isinstance(self.inner, ReportsPasses) else PassReport()

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def examples(self) -> Iterator[Example]:
        return self.inner.examples()

    def note(self, place: str, error: ValueError) -> None:
        """Passes a bad record to the dataset. Raises BadRecord if the dataset does not collect bad records."""
        if not isinstance(self.inner, CollectsBadRecords):
            raise BadRecord(f"datasets.{self.name}: {place}: {error}") from error
        self.inner.note(place, error)

    @property
    def judgements(self) -> EvaluationSet | None:
        return self._declared.judgements

    @property
    def label_scale(self) -> float:
        return self._declared.label_scale

    @property
    def relevant_label(self) -> float | None:
        return self._declared.relevant_label
