"""Texts of files, pools and own corpora, with stable ids."""

import json

import pytest

from rankpo.data.readers.beir import Beir, write_beir
from rankpo.data.readers.records import Records
from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import check_source, open_source, text_id


def lines(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


def test_a_file_with_and_without_ids(tmp_path):
    """The id of "moles" is by `printf moles | sha256sum`."""
    path = lines(
        tmp_path / "c.jsonl", {"_id": 7, "title": "On", "text": "moles"}, {"text": "moles"}, {"contents": "moles"}
    )
    found = list(open_source(path, "passage", []).texts())
    assert found == [("7", "On moles"), (text_id("moles"), "moles")]
    assert text_id("moles") == "a0b0e6cb741e6735"


def test_a_beir_folder_gives_its_corpus_and_its_queries(tmp_path):
    write_beir(tmp_path, [("d1", "one"), ("d2", "two")], [("q", "which")], {"q": {"d1": 1}})
    assert list(open_source(str(tmp_path), "passage", []).texts()) == [("d1", "one"), ("d2", "two")]
    assert list(open_source(str(tmp_path), "query", []).texts()) == [("q", "which")]
    own = open_source("own", "passage", [Beir(name="beir", path=str(tmp_path))])
    assert list(own.texts()) == [("d1", "one"), ("d2", "two")]


def test_the_pool_has_every_candidate_once(tmp_path):
    path = lines(
        tmp_path / "c.jsonl",
        {"query": "a", "positives": ["one"], "negatives": ["two", "three"]},
        {"query": "b", "positives": ["two"], "negatives": ["one  "]},
        {"query": "a", "positives": ["four"]},
    )
    dataset = Records(name="r", path=path)
    texts = [text for _, text in open_source("pool", "passage", [dataset]).texts()]
    assert texts == ["one", "two", "three", "four"]
    assert [text for _, text in open_source("pool", "query", [dataset]).texts()] == ["a", "b"]
    assert set(open_source("pool", "passage", [dataset]).files) == {tmp_path / "c.jsonl"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"_id": "d", "text": "a"}, {"_id": "d", "text": "b"}], "c.jsonl:2: the id 'd' appears more than once"),
        ([{"_id": "d", "words": "a"}], "c.jsonl:1: no text under text, content, .*found: _id, words"),
        ([3], "c.jsonl:1: not a JSON object"),
    ],
)
def test_bad_records_name_the_line(tmp_path, records, message):
    path = lines(tmp_path / "c.jsonl", *records)
    with pytest.raises(ValueError, match=message):
        list(open_source(path, "passage", []).texts())


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus: .*/none.jsonl does not exist"):
        check_source(str(tmp_path / "none.jsonl"), "corpus")
    with pytest.raises(ConfigError, match="datasets is empty"):
        open_source("pool", "passage", [])
    path = lines(tmp_path / "c.jsonl", {"query": "a", "positives": ["one"]})
    with pytest.raises(ConfigError, match=r"datasets\.r has no corpus; choose pool or a file"):
        list(open_source("own", "passage", [Records(name="r", path=path)]).texts())


def test_one_id_for_two_queries_of_the_pool(tmp_path):
    """Six queries of one id would be one query, and five were lost without a word."""
    rows = [{"id": "q", "query": f"text {n}", "positives": ["a"]} for n in range(6)]
    dataset = Records(name="own", path=lines(tmp_path / "c.jsonl", *rows))
    with pytest.raises(ConfigError, match=r"own \(c\.jsonl:2\): the id 'q' belongs to another query in .*c\.jsonl:1"):
        dict(open_source("pool", "query", [dataset]).texts())
    rows = [{"id": "q", "query": "the  same", "positives": ["a"]}, {"id": "q", "query": "the same", "positives": ["b"]}]
    dataset = Records(name="own", path=lines(tmp_path / "c.jsonl", *rows))
    assert dict(open_source("pool", "query", [dataset]).texts()) == {"q": "the  same"}


def test_a_data_file_with_a_blank_in_its_name(tmp_path):
    """Ids made of places go into run.trec."""
    dataset = Records(name="own", path=lines(tmp_path / "my own data.jsonl", {"query": "a", "positives": ["b"]}))
    assert [example.id for example in dataset.examples()] == ["own:my_own_data.jsonl:1"]


def test_tables_of_ms_marco(tmp_path):
    """collection.tsv and queries.tsv have no header: id and text; documents have id, url, title and body."""
    (tmp_path / "collection.tsv").write_text('0\tThe "first\n1\tsecond\n')
    (tmp_path / "docs.tsv").write_text("D1\thttps://x\tTitle\tBody\n")
    assert list(open_source(str(tmp_path / "collection.tsv"), "passage", []).texts()) == [
        ("0", 'The "first'),
        ("1", "second"),
    ]
    assert list(open_source(str(tmp_path / "docs.tsv"), "passage", []).texts()) == [("D1", "Title Body")]
    (tmp_path / "with.tsv").write_text("id\ttext\n0\tone\n")
    assert list(open_source(str(tmp_path / "with.tsv"), "passage", []).texts()) == [("0", "one")]
