"""Keys of `Records`, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.grade_pairs import check_preferences
from rankpo.data.readers import formats

# settings of where the records are
OF_HUB = (*("hub", "alias", "config", "split", "revision"), *("streaming", "window", "_source"))
NO_SETTINGS = {
    *OF_HUB,
    *("files", "report", "path", "corpus", "weight", "_corpus_files", "_lines"),
    *("_found", "_used", "_texts"),
}
OF_PREFERENCES = ("preferences", "pairs_per_query")  # Settings without effect unless preferences are made.


@dataclass(kw_only=True)
class RecordKeys:
    """The keys of `Records`, which documents them."""

    name: str
    path: str | Sequence[str] | None = None
    hub: str | None = None
    alias: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    window: int = 10_000
    format: str = "auto"
    min_label: float | None = None
    max_label: float | None = None
    relevant_from: float | None = None
    scores_are: str = "relevance"
    corpus: str | None = None
    min_confidence: float = 0
    where: Mapping[str, Sequence[object]] | None = None
    limit: int | None = None
    preferences: str | None = None
    pairs_per_query: int = 6
    weight: float = 1.0
    on_bad_record: str = "error"
    conflicts: str = "merge"
    quoted_tsv: bool = False

    def check(self) -> None:
        """Raises ValueError for an invalid value of a key, and sets the default of the range of labels."""
        check_preferences(self.preferences, self.pairs_per_query)
        of_hub = {name: getattr(self, name) for name in ("config", "split", "revision")}
        given = [f"{name}={value}" for name, value in of_hub.items() if value is not None]
        if self.path is not None and (given or self.streaming):
            said = ", ".join([*given, *(["streaming=true"] if self.streaming else [])])
            raise ValueError(f"path={self.path} names files, and {said} is for a dataset of the hub; remove it")
        for key, allowed in (
            ("format", ("auto", *formats.FORMATS)),
            ("on_bad_record", ("error", "skip")),
            ("conflicts", ("merge", "error")),
            ("scores_are", ("relevance", "teacher")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if not 0 <= self.min_confidence <= 100:
            raise ValueError(f"min_confidence must be in 0 to 100, got {self.min_confidence}")
        if self.min_label is None and self.max_label is not None:
            self.min_label = 0.0
        if self.min_label is not None and (self.max_label is None or not self.max_label > self.min_label):
            raise ValueError(f"max_label must be > min_label, got {self.min_label} and {self.max_label}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")
        if self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}")
        if self.streaming and self.weight != 1:
            raise ValueError(
                f"weight={self.weight:g} counts the examples of an epoch, and streaming=true has none; set 1"
            )
        if not self.weight >= 0:
            raise ValueError(f"weight must be >= 0, got {self.weight}")
        for key, values in (self.where or {}).items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"where.{key} must be a list of allowed values, got {values!r}")
