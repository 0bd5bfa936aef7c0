"""Teacher scores of every candidate in the training format of distillation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rankpo.data.relevance import stated
from rankpo.judges.forms import Scored
from rankpo.judges.records import Records
from rankpo.judges.scores import ScoresJudge
from rankpo.storage.atomic import replace_text
from rankpo.types import Example


def teach(
    judge: ScoresJudge, examples: Iterable[Example], folder: Path, limit: int | None, say: Callable[[str], None]
) -> int:
    """Writes `folder`/teacher.jsonl with the judge's score of every candidate; returns its number of lines.

    Positives and negatives give pos/neg records with scores, FlagEmbedding's form; if an example has other labels,
    all records are hits with label and score. Each query is on disk before the next is scored, so that a restart
    continues where it stopped.
    """
    records: Records[Scored] = Records(folder / "scores.jsonl", "key")
    scored: list[tuple[Example, Sequence[float]]] = []
    try:
        for number, example in enumerate(examples):
            if limit is not None and number >= limit:
                break
            key = f"{number}:{example.id}"
            record = records.get(key)
            if record is None or "scores" not in record:  # an earlier version wrote whole lines
                record = {"key": key, "scores": _scores(judge, example)}
                records.add(record)
            scored.append((example, record["scores"]))
    finally:
        records.close()
    form = pos_neg if all(stated(example) is not None for example, _ in scored) else hits
    path = folder / "teacher.jsonl"
    lines = (json.dumps(form(example, scores)) for example, scores in scored)
    replace_text(path, "".join(f"{line}\n" for line in lines))
    say(f"{path}: {len(scored)} queries scored by {judge.name}")
    return len(scored)


def _scores(judge: ScoresJudge, example: Example) -> list[float]:
    """Raises ValueError for turns."""
    if not isinstance(example.query, str):
        raise ValueError(f"{example.source}: a conversation cannot be scored as a query; give plain texts")
    return judge.score(example.query, example.candidates)


def pos_neg(example: Example, scores: Sequence[float]) -> dict[str, object]:
    """Relevant candidates under pos, the others under neg, each with the teacher's score."""
    found = list(zip(example.candidates, stated(example) or (), scores, strict=True))
    return {
        "query": example.query,
        "pos": [text for text, positive, _ in found if positive],
        "neg": [text for text, positive, _ in found if not positive],
        "pos_scores": [score for _, positive, score in found if positive],
        "neg_scores": [score for _, positive, score in found if not positive],
        **_about(example),
    }


def hits(example: Example, scores: Sequence[float]) -> dict[str, object]:
    """Candidates with their labels and the teacher's scores."""
    found = zip(example.candidates, example.relevance, scores, strict=True)
    listed = [{"content": text, "label": label, "score": score} for text, label, score in found]
    return {"query": example.query, "hits": listed, **_about(example)}


def _about(example: Example) -> dict[str, object]:
    prompt = {} if example.query_prompt is None else {"prompt": example.query_prompt}
    return {"id": example.id, **prompt}
