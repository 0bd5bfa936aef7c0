"""Checks of the keys of `Records`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankpo.data.grade_pairs import check_preferences
from rankpo.data.readers import formats

if TYPE_CHECKING:
    from rankpo.data.readers.records import Records

# settings of where the records are
OF_HUB = (*("hub", "alias", "config", "split", "revision"), *("streaming", "window", "_source"))
NO_SETTINGS = {
    *OF_HUB,
    *("files", "report", "path", "corpus", "weight", "_corpus_files", "_lines"),
    *("_found", "_used", "_texts"),
}
OF_PREFERENCES = ("preferences", "pairs_per_query")  # Settings without effect unless preferences are made.


def check_keys(records: Records) -> None:
    """Raises ValueError for a key that is not allowed, and completes the range of labels."""
    check_preferences(records.preferences, records.pairs_per_query)
    of_hub = {name: getattr(records, name) for name in ("config", "split", "revision")}
    given = [f"{name}={value}" for name, value in of_hub.items() if value is not None]
    if records.path is not None and (given or records.streaming):
        said = ", ".join([*given, *(["streaming=true"] if records.streaming else [])])
        raise ValueError(f"path={records.path} names files, and {said} is for a dataset of the hub; leave it out")
    for key, allowed in (
        ("format", ("auto", *formats.FORMATS)),
        ("on_bad_record", ("error", "skip")),
        ("conflicts", ("merge", "error")),
        ("scores_are", ("relevance", "teacher")),
    ):
        if getattr(records, key) not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(records, key)!r}")
    if not 0 <= records.min_confidence <= 100:
        raise ValueError(f"min_confidence must be in 0 to 100, got {records.min_confidence}")
    if records.min_label is None and records.max_label is not None:
        records.min_label = 0.0
    if records.min_label is not None and (records.max_label is None or not records.max_label > records.min_label):
        raise ValueError(f"max_label must be > min_label, got {records.min_label} and {records.max_label}")
    if records.limit is not None and records.limit < 1:
        raise ValueError(f"limit must be >= 1 or null, got {records.limit}")
    if records.window < 1:
        raise ValueError(f"window must be >= 1, got {records.window}")
    if records.streaming and records.weight != 1:
        raise ValueError(
            f"weight={records.weight:g} counts the examples of an epoch, and streaming=true has none; set 1"
        )
    if not records.weight >= 0:
        raise ValueError(f"weight must be >= 0, got {records.weight}")
    for key, values in (records.where or {}).items():
        if not isinstance(values, list | tuple):
            raise ValueError(f"where.{key} must be a list of allowed values, got {values!r}")
