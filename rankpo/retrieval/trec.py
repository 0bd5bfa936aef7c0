"""TREC runs: `qid Q0 docid rank score tag`, as trec_eval, ranx and ir_measures read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rankpo.ranking_metrics import Run, order


def write_run(path: str | Path, run: Run, tag: str = "rankpo") -> None:
    """Writes the run beside `path` and renames it: scores with nine significant digits, ranks from 1, our tie rule.

    Raises ValueError for an id with white space, which the format cannot hold.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for query, scores in run.items():
            for rank, document in enumerate(order(scores), 1):
                for name in (query, document):
                    if not name or name.split() != [name]:
                        raise ValueError(f"{target}: the id {name!r} is empty or has white space")
                file.write(f"{query} Q0 {document} {rank} {scores[document]:.9g} {tag}\n")
    temporary.replace(target)


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Scores by query and document; of three columns `qid docid rank`, the score is -rank.

    Raises ValueError naming the line for another number of columns, a score that is no number, or a document that
    occurs twice in a query.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) not in (3, 6):
            raise ValueError(f"{path}:{number}: {len(columns)} columns; a run has 6 (qid Q0 docid rank score tag) or 3")
        query, document = columns[0], columns[2 if len(columns) == 6 else 1]
        score = _number(columns[4] if len(columns) == 6 else f"-{columns[2]}", f"{path}:{number}")
        scores = run.setdefault(query, {})
        if document in scores:
            raise ValueError(f"{path}:{number}: document {document} stands twice in query {query}")
        scores[document] = score
    return run


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Grades by query and document from `qid 0 docid grade`, or BEIR's three columns with a header.

    Raises ValueError naming the line for another number of columns, or a pair with two grades.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns or (number == 1 and columns[:2] == ["query-id", "corpus-id"]):
            continue
        if len(columns) not in (3, 4):
            raise ValueError(f"{path}:{number}: {len(columns)} columns; qrels have 4 (qid 0 docid grade) or 3")
        query, document = columns[0], columns[-2]
        grade = int(_number(columns[-1], f"{path}:{number}"))
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise ValueError(
                f"{path}:{number}: {query} {document} has two grades, {qrels[query][document]} and {grade}"
            )
    return qrels


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{place}: {text!r} is not a number") from None


def counts(run: Mapping[str, Mapping[str, float]]) -> tuple[int, int]:
    """Queries and documents of a run."""
    return len(run), sum(map(len, run.values()))
