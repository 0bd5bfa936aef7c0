"""BEIR folders: written and read back, judged ids that are missing, and lines that do not fit."""

import json
from pathlib import Path

import pytest

from rankpo.data.readers.beir import Beir, write_beir

CORPUS = [("d1", "Moles dig."), ("d2", "Roman coins.")]
QUERIES = [("q1", "how deep do moles dig"), ("q2", "größte Münze"), ("q3", "not judged")]
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": -1}}


def folder(tmp_path: Path, corpus=CORPUS, queries=QUERIES, qrels=QRELS, split: str = "test") -> Path:
    write_beir(tmp_path / "soil", corpus, queries, qrels, split)
    return tmp_path / "soil"


def load(path: Path, **settings) -> Beir:
    return Beir(name="soil", path=str(path), **settings)


def test_what_is_written_comes_back(tmp_path):
    data = load(folder(tmp_path, split="dev"), split="dev")
    assert list(data.corpus()) == CORPUS
    assert list(data.queries()) == QUERIES
    assert data.qrels() == QRELS
    assert (tmp_path / "soil" / "qrels" / "dev.tsv").read_text().splitlines()[:2] == [
        "query-id\tcorpus-id\tscore",
        "q1\td1\t2",
    ]


def test_judged_documents_are_candidates_with_their_grades(tmp_path):
    first, second = load(folder(tmp_path)).examples()
    assert (first.query, first.candidates, first.relevance, first.id) == (
        "how deep do moles dig",
        ("Moles dig.", "Roman coins."),
        (2.0, 0.0),
        "soil:q1",
    )
    assert second.relevance == (0.0,)  # a negative grade counts as 0


def test_document_format(tmp_path):
    path = folder(tmp_path)
    rows = [
        {"_id": 1, "title": "The {text} of moles", "text": "Moles dig."},
        {"_id": 2, "text": "No title.", "title": None},
    ]
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(load(path).corpus()) == [("1", "The {text} of moles Moles dig."), ("2", "No title.")]
    assert next(load(path, document_format="{title}\n{text}").corpus()) == ("1", "The {text} of moles\nMoles dig.")
    assert list(load(path, document_format="passage: {text}").corpus())[1] == ("2", "passage: No title.")


def test_missing_ids_are_an_error_with_the_first_ten_or_dropped_and_counted(tmp_path):
    judged = {"q1": {"d1": 1, **{f"gone{n}": 1 for n in range(12)}}, "nobody": {"d1": 1}}
    path = folder(tmp_path, qrels=judged)
    with pytest.raises(ValueError, match=r"13 judged ids are in neither corpus nor queries: nobody, gone0, .*, gone8; set datasets.soil.missing_ids=drop"):  # fmt: skip
        load(path).qrels()
    data = load(path, missing_ids="drop")
    assert data.qrels() == {"q1": {"d1": 1}}
    assert data.dropped == 13


@pytest.mark.parametrize("name", ["corpus", "queries"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "x"}', r"3: needs _id and a text under text \(found: _id\)"),
        ('{"text": "x"}', r"3: needs _id and a text under text \(found: text\)"),
        ('{"_id": "x", "text": null}', "3: needs _id and a text under text"),
        ('{"_id": "x", "text": "y", "title": 3}', "3: needs _id and a text under text"),
        ("[]", "3: not a JSON object but list"),
        ('{"_id": "ID1", "text": "again"}', "3: the id 'ID1' appears more than once"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, line, message):
    path = folder(tmp_path)
    rows = [json.dumps({"_id": f"ID{number}", "text": "x"}) for number in (1, 2)]
    (path / f"{name}.jsonl").write_text("\n".join([*rows, line]))
    data = load(path)
    with pytest.raises(ValueError, match=rf"datasets.soil: {name}.jsonl:{message}"):
        list(data.corpus() if name == "corpus" else data.queries())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing_ids": "ignore"}, "missing_ids must be one of error, drop, got 'ignore'"),
        ({"gain": "log"}, "gain must be one of exp, linear, got 'log'"),
        ({"relevant_from": 0}, "relevant_from must be >= 1, got 0"),
        ({"document_format": "{title}"}, "document_format must have {text}, got '{title}'"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path), **settings)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: .*qrels/train.tsv does not exist"):
        load(folder(tmp_path), split="train")


def test_ids_that_qrels_cannot_hold_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="the id 'd 1' is empty or has white space"):
        folder(tmp_path, qrels={"q1": {"d 1": 1}})


def test_the_fingerprint_follows_contents_and_settings(tmp_path):
    path = folder(tmp_path)
    first = load(path).fingerprint()
    assert load(path, gain="exp").fingerprint() == first  # how it is measured changes no text
    assert load(path, document_format="{text}").fingerprint() != first
    folder(tmp_path, qrels={"q1": {"d1": 1}})
    assert load(path).fingerprint() != first
