"""Preference pairs from grades: which ones, in which order, from every reader of graded data."""

from __future__ import annotations

import json

import pytest

from rankpo.data.grade_pairs import grade_pairs
from rankpo.data.readers.beir import Beir, write_beir
from rankpo.data.readers.collection import Collection
from rankpo.data.readers.records import Records
from rankpo.data.relevance import UnknownRelevance
from rankpo.data.shape import declared
from rankpo.types import Example

DOCUMENTS = [(f"d{number}", f"text {number}") for number in range(6)]
QRELS = {"q1": {"d0": 3, "d1": 2, "d2": 2, "d3": 1, "d4": 0}, "q2": {"d0": 1, "d5": 1}}
PAIRS = {("text 0", "text 1"), ("text 0", "text 2"), ("text 0", "text 3"), ("text 1", "text 3"), ("text 2", "text 3")}


@pytest.fixture
def folder(tmp_path):
    write_beir(tmp_path / "soil", DOCUMENTS, [("q1", "one"), ("q2", "two")], QRELS, "test")
    return tmp_path / "soil"


def pairs_of(dataset):
    return [(example.candidates, example.query) for example in dataset.examples()]


def test_relevant_documents_of_different_grades(folder):
    """d4 is not relevant, d1 and d2 are equal, and both documents of q2 are."""
    data = Beir(name="soil", path=str(folder), preferences="grades")
    examples = list(data.examples())
    assert {example.candidates for example in examples} == PAIRS and len(examples) == len(PAIRS)
    assert {(example.relevance, example.relevant, example.query) for example in examples} == {
        ((1.0, 0.0), (True, False), "one")
    }
    assert [example.id for example in examples] == [f"soil:q1/{number}" for number in range(5)]
    assert all(example.confidence is None and example.grades is None for example in examples)
    few = Beir(name="soil", path=str(folder), preferences="grades", pairs_per_query=2)
    assert pairs_of(few) == pairs_of(data)[:2]
    high = Beir(name="soil", path=str(folder), preferences="grades", relevant_from=2)
    assert {example.candidates for example in high.examples()} == {("text 0", "text 1"), ("text 0", "text 2")}


def test_the_kind_of_evaluation_and_the_fingerprint_follow(folder):
    plain, pairs = Beir(name="soil", path=str(folder)), Beir(name="soil", path=str(folder), preferences="grades")
    assert declared(plain).judgements is plain and declared(pairs).judgements is None
    assert len({plain.fingerprint(), pairs.fingerprint()}) == 2
    more = Beir(name="soil", path=str(folder), preferences="grades", pairs_per_query=2)
    assert more.fingerprint() != pairs.fingerprint()
    unused = Beir(name="soil", path=str(folder), pairs_per_query=2)
    assert unused.fingerprint() == plain.fingerprint()


def test_collections_of_trec(folder, tmp_path):
    (tmp_path / "corpus.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in DOCUMENTS))
    (tmp_path / "queries.tsv").write_text("q1\tone\nq2\ttwo\n")
    lines = [f"{query} 0 {name} {grade}\n" for query, judged in QRELS.items() for name, grade in judged.items()]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    keys = {"corpus_file": "corpus.tsv", "queries_file": "queries.tsv", "qrels_file": "qrels.txt"}
    files = {key: str(tmp_path / name) for key, name in keys.items()}
    data = Collection(name="soil", **files, preferences="grades")
    assert pairs_of(data) == pairs_of(Beir(name="soil", path=str(folder), preferences="grades"))
    assert declared(data).judgements is None and declared(Collection(name="soil", **files)).judgements is not None
    assert data.fingerprint() != Collection(name="soil", **files).fingerprint()


def test_records_with_labels(tmp_path):
    path = tmp_path / "graded.jsonl"
    hits = [{"content": text, "label": QRELS["q1"][name]} for name, text in DOCUMENTS[:5]]
    path.write_text(json.dumps({"query": "one", "hits": hits}) + "\n")
    data = Records(name="g", path=str(path), preferences="grades", relevant_from=1)
    assert {example.candidates for example in data.examples()} == PAIRS
    plain = Records(name="g", path=str(path), relevant_from=1)
    assert data.fingerprint() != plain.fingerprint()
    with pytest.raises(UnknownRelevance, match="relevant_from is not set: preferences=grades needs to know"):
        list(Records(name="g", path=str(path), preferences="grades").examples())


def test_what_makes_no_pair_is_an_error(folder):
    with pytest.raises(
        ValueError, match="preferences=grades: no query has two relevant candidates of different grades"
    ):
        list(Beir(name="soil", path=str(folder), preferences="grades", relevant_from=3).examples())
    with pytest.raises(ValueError, match="preferences must be grades or null, got 'judge'"):
        Beir(name="soil", path=str(folder), preferences="judge")
    with pytest.raises(ValueError, match="pairs_per_query must be >= 1, got 0"):
        Beir(name="soil", path=str(folder), preferences="grades", pairs_per_query=0)


def test_equal_texts_are_no_pair():
    example = Example("q", ("a", "a", "b"), (2.0, 1.0, 1.0), "x", relevant=(True, True, True))
    assert [pair.candidates for pair in grade_pairs(example, 9, "n")] == [("a", "b")]
