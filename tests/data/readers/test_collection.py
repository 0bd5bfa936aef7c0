"""Collections of MS MARCO and TREC, found by the names of their files."""

from __future__ import annotations

import gzip

import pytest

from rankpo.data.readers.collection import Collection
from rankpo.data.relevance import stated

COLLECTION = '0\tMoles dig to 70 cm.\n1\tA "mole\n2\tMoles are mammals.\n'
QUERIES = "10\thow deep do moles dig\n11\twhat is a mole\n"
TOPICS = "<top>\n<num> Number: 10\n<title> how deep do\nmoles dig\n<desc> Description:\nx\n</top>\n<top>\n<num> Number: 11\n<title> Topic: what is a mole\n</top>\n"


def folder(tmp_path, **named):
    for name, content in named.items():
        (tmp_path / name.replace("__", ".")).write_text(content)
    return str(tmp_path)


def test_triples_of_ids(tmp_path):
    path = folder(
        tmp_path, collection__tsv=COLLECTION, queries__train__tsv=QUERIES, queries__dev__tsv="9\tother\n",
        qidpidtriples__train__full__2__tsv="10\t0\t2\n11\t1\t0\n",
    )  # fmt: skip
    first, second = Collection(name="m", path=path, split="train").examples()
    assert (first.query, first.candidates) == ("how deep do moles dig", ("Moles dig to 70 cm.", "Moles are mammals."))
    assert stated(first) == (True, False) and second.candidates[0] == 'A "mole'
    with pytest.raises(
        ValueError, match=r"queries: 2 files of .* match \(queries\.dev\.tsv, queries\.train\.tsv\); set split"
    ):
        Collection(name="m", path=path)
    (tmp_path / "qidpidtriples.train.full.2.tsv").write_text("10\t0\t7\n")
    with pytest.raises(ValueError, match=r"full\.2\.tsv:1: collection\.tsv has no text for the id '7'"):
        list(Collection(name="m", path=path, split="train").examples())


def test_triples_of_texts(tmp_path):
    path = folder(tmp_path, triples__train__small__tsv='how deep\t"70 cm\tmammals\n')
    (example,) = Collection(name="m", path=path).examples()
    assert (example.query, example.candidates, stated(example)) == ("how deep", ('"70 cm', "mammals"), (True, False))


@pytest.mark.parametrize("topics", [False, True])
def test_judgements_with_a_run(tmp_path, topics):
    """Judged documents and the run's first ones; TREC's topics or a table."""
    path = folder(
        tmp_path, collection__tsv=COLLECTION, qrels__dev__tsv="10\t0\t0\t2\n10\t0\t1\t0\n99\t0\t1\t1\n",
        run__dev__trec="10 Q0 2 1 5.0 x\n10 Q0 0 2 4.0 x\n11 Q0 1 1 3.0 x\n",
        **{"topics__txt" if topics else "queries__dev__tsv": TOPICS if topics else QUERIES},
    )  # fmt: skip
    collection = Collection(name="m", path=path, split="dev")
    assert list(collection.queries()) == [("10", "how deep do moles dig"), ("11", "what is a mole")]
    assert collection.qrels() == {"10": {"0": 2, "1": 0}} and len(list(collection.corpus())) == 3
    (example,) = collection.examples()
    assert example.relevance == (2.0, 0.0, 0.0) and stated(example) == (True, False, False)
    assert example.candidates == ("Moles dig to 70 cm.", 'A "mole', "Moles are mammals.")
    (example,) = Collection(name="m", path=path, split="dev", depth=1, relevant_from=3).examples()
    assert stated(example) == (False, False, False)
    assert collection.fingerprint() != Collection(name="m", path=path, split="dev", depth=1).fingerprint()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither qrels nor triples"):
        Collection(name="m", path=folder(tmp_path, collection__tsv=COLLECTION))
    with pytest.raises(FileNotFoundError, match="corpus_file and queries_file must be set to the texts"):
        Collection(name="m", qrels_file=str(tmp_path / "collection.tsv"))
    with pytest.raises(ValueError, match="relevant_from must be >= 1, got 0"):
        Collection(name="m", path=str(tmp_path), relevant_from=0)


def test_every_file_may_be_compressed(tmp_path):
    """As MS MARCO publishes its documents."""
    for name, content in {
        "msmarco-docs.tsv.gz": "D1\thttp://a\tMoles\tThey dig.\nD2\thttp://b\tRain\tIt falls.\n",
        "msmarco-doctrain-queries.tsv.gz": "10\thow deep\n",
        "msmarco-doctrain-qrels.tsv.gz": "10 0 D1 1\n",
        "run.train.trec.gz": "10 Q0 D2 1 5.0 x\n",
    }.items():
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    (example,) = Collection(name="m", path=str(tmp_path)).examples()
    assert (example.candidates, stated(example)) == (("Moles They dig.", "Rain It falls."), (True, False))
    cut = gzip.compress(b"10 0 D1 1\n" * 9)[:-9]
    (tmp_path / "msmarco-doctrain-qrels.tsv.gz").write_bytes(cut)
    with pytest.raises(ValueError, match=r"qrels\.tsv\.gz: cannot be decompressed: "):
        Collection(name="m", path=str(tmp_path)).qrels()


def test_triples_of_texts_have_no_corpus(tmp_path):
    collection = Collection(name="m", path=folder(tmp_path, triples__tsv="q\ta\tb\n"))
    for part in (collection.corpus, collection.queries):
        with pytest.raises(
            ValueError, match=rf"datasets\.m has no {part.__name__}; set datasets\.m\.{part.__name__}_file"
        ):
            list(part())
