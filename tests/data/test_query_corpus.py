"""A file of queries and a file of the corpus: what RankPO's evaluation reads, in its forms and by ids."""

from __future__ import annotations

import json

import pytest

from rankpo.data.readers.query_corpus import QueryCorpus
from tests.runs import train

DOCUMENTS = ["a red cat", "stones", "a blue dog", "worms"]


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def made(folder, queries, corpus=None):
    corpus = corpus or [{"text": text} for text in DOCUMENTS]
    files = {"queries_file": written(folder / "q.jsonl", *queries), "corpus_file": written(folder / "c.jsonl", *corpus)}
    return QueryCorpus(name="corpus", **files)


RAW = {"query": {"text": "cat"}, "positives": {"index": [0, 2], "text": ["a red cat", "a blue dog"]}}


@pytest.mark.parametrize(
    "record",
    [
        RAW,
        {"query": "cat", "positives": [0, 2]},
        {"query": "cat", "positives": ["a red cat", "a  blue dog"]},  # white space as everywhere
        {"query": "cat", "pos": ["0", "2"]},
        {"_id": "q0", "text": "cat", "positive_ids": ["0", "2", "0"]},
    ],
)
def test_forms_of_positives(tmp_path, record):
    data = made(tmp_path, [record])
    assert list(data.queries()) == [("q0", "cat")] and data.qrels() == {"q0": {"0": 1, "2": 1}}
    (example,) = data.examples()
    assert example.candidates == ("a red cat", "a blue dog") and example.id == "corpus:q0"


def test_ids_of_the_corpus(tmp_path):
    corpus = [{"id": f"d{number}", "text": text} for number, text in enumerate(DOCUMENTS)]
    data = made(tmp_path, [{"query": "cat", "positives": ["d3"]}, {"query": "dog", "positives": [2]}], corpus)
    assert data.qrels() == {"q0": {"d3": 1}, "q1": {"d2": 1}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "cat", "positives": [4]}, r"q\.jsonl:1: the positive 4 is no line of the corpus, which has 4"),
        ({"query": "cat", "positives": ["mice"]}, r"q\.jsonl:1: the positive 'mice' is neither an id nor a text"),
        ({"query": "cat"}, r"q\.jsonl:1: no list under positives\.index or .* \(found: query\)"),
        ({"positives": [1]}, r"q\.jsonl:1: no text under"),
    ],
)
def test_what_the_corpus_does_not_have(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, [record]).qrels()


def test_a_model_of_random_weights_does_not_find_everything(tmp_path):
    """The queries are searched in the whole corpus: each record's own candidates alone would give a recall of 1."""
    corpus = [{"text": f"text number {number * number}"} for number in range(60)]
    queries = [{"query": f"number {number}", "positives": {"index": [number]}} for number in range(20)]
    data = [
        "eval_datasets=[corpus]",
        f"eval_datasets.corpus.queries_file={written(tmp_path / 'q.jsonl', *queries)}",
        f"eval_datasets.corpus.corpus_file={written(tmp_path / 'c.jsonl', *corpus)}",
    ]
    train(
        "task=evaluate",
        "model=tiny_bert",
        "model.random.num_hidden_layers=1",
        *data,
        f"cache_dir={tmp_path}",
        "exp_name=e",
    )
    (path,) = (tmp_path / "e").rglob("metrics.json")
    metrics = json.loads(path.read_text())
    found = metrics.get("metrics", metrics)
    assert 0 < found["recall@100"] <= 1 and found["ndcg@10"] < 0.9
