"""A teacher's scores of every candidate, straight into the training format of distillation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rankpo.judges.records import Records
from rankpo.judges.scores import ScoresJudge
from rankpo.storage.atomic import replace_text
from rankpo.types import Example


def teach(
    judge: ScoresJudge, examples: Iterable[Example], folder: Path, limit: int | None, say: Callable[[str], None]
) -> int:
    """Writes `folder`/teacher.jsonl in pos/neg form with scores (rerankers.md 1.5); returns its number of lines.

    Each query is on the disk before the next is scored: started again, the work goes on where it stopped.
    """
    records = Records(folder / "scores.jsonl", "key")
    lines: list[str] = []
    try:
        for number, example in enumerate(examples):
            if limit is not None and number >= limit:
                break
            key = f"{number}:{example.id}"
            record = records.get(key)
            if record is None:
                record = {"key": key, **scored(judge, example)}
                records.add(record)
            lines.append(json.dumps({k: v for k, v in record.items() if k != "key"}))
    finally:
        records.close()
    path = folder / "teacher.jsonl"
    replace_text(path, "".join(f"{line}\n" for line in lines))
    say(f"{path}: {len(lines)} queries scored by {judge.name}")
    return len(lines)


def scored(judge: ScoresJudge, example: Example) -> dict[str, Any]:
    """One line: relevant candidates under pos, the others under neg, each with the teacher's score. Raises ValueError for turns."""
    if not isinstance(example.query, str):
        raise ValueError(f"{example.source}: a conversation cannot be scored as a query; give plain texts")
    scores = judge.score(example.query, example.candidates)
    line: dict[str, Any] = {"query": example.query, "pos": [], "neg": [], "pos_scores": [], "neg_scores": []}
    for text, relevance, score in zip(example.candidates, example.relevance, scores, strict=True):
        side = "pos" if relevance > 0 else "neg"
        line[side].append(text)
        line[f"{side}_scores"].append(score)
    return {**line, "id": example.id}
