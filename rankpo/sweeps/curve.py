"""Curve of one metric, read from the metrics.jsonl of a running job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.sweeps.folder import find_metric

if TYPE_CHECKING:
    pass


class Curve:
    """Evaluations of one metric in a metrics.jsonl that grows."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric
        self.place = 0  # The number of bytes read.

    def news(self) -> list[tuple[int, float]]:
        """Returns (update, value) of new lines since the last call, without the evaluation before the first update."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self.place:  # A continued run has removed lines after its checkpoint.
            self.place = 0
        with self.path.open("rb") as file:
            file.seek(self.place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.place += len(whole)
        found = []
        for line in whole.splitlines():
            record = json.loads(line)
            values = {name.removeprefix("eval/"): value for name, value in record.items() if name.startswith("eval/")}
            name = find_metric(self.metric, values)
            if name is not None and values[name] is not None and record["step"] > 0:
                found.append((int(record["step"]), float(values[name])))
        return found
