"""Lines of a corpus file, to which `positives.index` of RankPO's raw records refers."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import BadRecord, extract, normal
from rankpo.data.readers.parsed import Parsed
from rankpo.data.readers.passes import BadRecords


class CorpusLines:
    """The lines of corpus files by number. key: the config key of the dataset, for messages."""

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self.paths, self.key = paths, key

    def check(self, record: Mapping[str, object], parsed: Parsed) -> None:
        """Raises BadRecord unless each index is the number of the corpus line with the same text."""
        indices = extract(record, "positives.index")
        if indices is None:
            raise BadRecord(f"no positives.index, and {self.key}.corpus needs it for the check of texts")
        for number, (index, text) in enumerate(zip(indices, parsed.candidates, strict=False)):
            if not isinstance(index, int) or not 0 <= index < len(self._keys):
                raise BadRecord(f"positives.index[{number}] is {index}; the corpus has {len(self._keys)} lines")
            if self._keys[index] != _digest(text):
                raise BadRecord(f"positives.index[{number}] is {index}, but that line of the corpus has another text")

    @cached_property
    def _keys(self) -> array[int]:
        """The xxh3-64 digest of the normalised text of each line."""
        keys = array("Q")
        for path in self.paths:
            for place, record in files.records(path):
                text = record.get("text") if isinstance(record, Mapping) else None
                if not isinstance(text, str):
                    raise BadRecords(f"{self.key}.corpus: {place}: no text under 'text'")
                keys.append(_digest(text))
        return keys


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(normal(text).encode())
