"""TREC runs, with lines `qid Q0 docid rank score tag` as in trec_eval, ranx and ir_measures; and qrels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rankpo.data.readers.compression import errors, opened
from rankpo.storage.atomic import replacing

GRADE_NAMES = ("score", "grade", "relevance", "rel", "label", "judgment", "judgement")  # Last columns of headers.
Run = Mapping[str, Mapping[str, float]]


def order(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first. Ties are sorted by id in descending string order, as in trec_eval."""
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)


def write_run(path: str | Path, run: Run, tag: str = "rankpo") -> None:
    """Writes the run atomically, with ranks from 1 and the tie rule of `order`.

    Scores have nine significant digits, which represent every float32 exactly. Raises ValueError, before the file is
    replaced, for an id or a tag with white space, which the format cannot hold, and for a score that is not finite.
    """
    target = Path(path)
    _check_name("tag", tag, target)
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, scores in run.items():
            _check_name("id", query, target)
            for rank, document in enumerate(order(scores), 1):
                _check_name("id", document, target)
                if not math.isfinite(scores[document]):
                    raise ValueError(f"{target}: query {query}, document {document}: score {scores[document]}")
                file.write(f"{query} Q0 {document} {rank} {scores[document]:.9g} {tag}\n")


def _check_name(what: str, name: str, target: Path) -> None:
    if name.split() != [name]:
        raise ValueError(f"{target}: the {what} {name!r} is empty or has white space")


def read_run(path: str | Path, say: Callable[[str], None] | None = None) -> dict[str, dict[str, float]]:
    """Scores by query and document. For three columns `qid docid rank`, the score is -rank.

    The scores determine the order, as in trec_eval. `say` reports the number of queries whose rank column has another
    order. Raises ValueError, with the line, for another number of columns, a score that is not a number, or a document
    that occurs twice in a query.
    """
    run: dict[str, dict[str, float]] = {}
    ranks: dict[str, list[tuple[float, float]]] = {}
    for place, columns in _lines(path, (3, 6)):
        if len(columns) not in (3, 6):
            raise ValueError(f"{place}: {len(columns)} columns; a run has 6 (qid Q0 docid rank score tag) or 3")
        query, document, rank = (columns[0], *columns[2:4]) if len(columns) == 6 else columns
        position = _number(rank, place)
        score = _number(columns[4], place) if len(columns) == 6 else -position
        scores = run.setdefault(query, {})
        if document in scores:
            raise ValueError(f"{place}: document {document} appears more than once in query {query}")
        scores[document] = score
        ranks.setdefault(query, []).append((position, -score))
    other = sum(any(a[1] > b[1] for a, b in pairwise(sorted(of_query))) for of_query in ranks.values())
    if other and say is not None:
        say(
            f"{path}: in {other} of {len(run)} queries the order of the rank column differs; the order of scores is used"
        )
    return run


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Grades by query and document, from lines `qid 0 docid grade`, or from BEIR's three columns; a header is skipped.

    Raises ValueError, with the line, for another number of columns, a grade that is not an integer, or a pair with two
    grades, and for a file without judgements.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (place, columns) in enumerate(_lines(path, (3, 4))):
        if number == 0 and columns[-1].lower() in GRADE_NAMES:
            continue
        if len(columns) not in (3, 4):
            raise ValueError(f"{place}: {len(columns)} columns; qrels have 4 (qid 0 docid grade) or 3")
        query, document = columns[0], columns[-2]
        grade = whole_grade(columns[-1], place)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise ValueError(f"{place}: {query} {document} has two grades, {qrels[query][document]} and {grade}")
    if not qrels:
        raise ValueError(f"{path} holds no judgement")
    return qrels


def whole_grade(value: object, place: str) -> int:
    """A grade as an integer. Raises ValueError, with the place, for a fraction, which would be cut, and for no number."""
    grade = _number(str(value), place)
    if grade != int(grade):
        raise ValueError(f"{place}: the grade {value} is not a whole number")
    return int(grade)


def check_names(ids: Iterable[str], where: str) -> None:
    """Raises ValueError for an id that a TREC file cannot hold. Called before any expensive work."""
    for name in ids:
        if name.split() != [name]:
            raise ValueError(
                f"{where}: the id {name!r} is empty or has white space, which TREC files (run.trec) cannot hold; give it "
                "another id"
            )


def _lines(path: str | Path, allowed: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """Yields (file:line, columns) for the non-blank lines of a file, which can be compressed (.gz, .zst).

    allowed: the allowed numbers of columns. A line is split at tabs if that gives an allowed number, so that ids can
    contain spaces; otherwise it is split at white space. Raises ValueError, with the line, for bytes that are not UTF-8,
    and with the file for a damaged compressed file.
    """
    try:
        with opened(Path(path)) as file:
            for number, data in enumerate(file, 1):
                line = _decoded(data, f"{path}:{number}").removeprefix("\ufeff")
                cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
                columns = cells if len(cells) in allowed and all(cells) else line.split()
                if columns:
                    yield f"{path}:{number}", columns
    except errors(Path(path)) as error:
        raise ValueError(f"{path}: cannot be decompressed: {error}") from error


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8: {error}") from error


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{place}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{place}: {text!r} is not a finite number")
    return value
