"""Layouts of other tools, with their real names and no field map: what each becomes, and what is said of it."""

from __future__ import annotations

import json

import pytest

from rankpo.data.readers.passes import BadRecords
from rankpo.data.readers.records import Records
from rankpo.data.relevance import stated

Q, P, N, M = "how deep do moles dig", "Moles dig to 70 cm.", "Moles are mammals.", "A mole is a unit."
TURN = {"user": {"role": "user", "content": Q}}


def said(content):
    return [{"role": "assistant", "content": content}]


def load(tmp_path, rows, name="data.jsonl", **settings) -> Records:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Records(name="x", path=str(path), **settings)


LISTS = {  # records that hold a query, one positive and two negatives
    "st n-tuple": {"anchor": Q, "positive": P, "negative_1": N, "negative_2": M},
    "st other names": {"question": Q, "answer": P, "wrong": N, "worse": M},
    "st negatives as a list": {"query": Q, "positive": P, "negative": [N, M]},
    "st with an id column": {"query_id": "7", "query": Q, "pos": P, "neg": N, "neg2": M, "pos_id": "1", "neg_id": "2"},
    "st numbered, some empty": {"anchor": Q, "positive": P, "negative_1": N, "negative_2": "", "negative_3": M, "negative_4": None},
    "flag": {"query": Q, "pos": [P], "neg": [N, M], "pos_id": ["1"], "neg_id": ["2", "3"]},
    "rankpo": {"query": Q, "positives": [P], "negatives": [N, M]},
    "tevatron v1": {
        "query_id": "7",
        "query": Q,
        "positive_passages": [{"docid": "1", "title": "", "text": P}],
        "negative_passages": [{"docid": "2", "text": N}, {"docid": "3", "title": None, "text": M}],
    },
    "nemo inline": {"query": Q, "pos_doc": P, "neg_doc": [N, M]},
    "nemo inline objects": {"question": Q, "pos_doc": [{"text": P}], "neg_doc": [{"text": N}, {"text": M}]},
    "swift messages": {
        "messages": [TURN["user"]],
        "positive_messages": [said(P)],
        "negative_messages": [said(N), said(M)],
    },
    "swift": {"query": Q, "response": P, "rejected_response": [N, M]},
    "dpr": {
        "question": Q,
        "answers": ["70 cm"],
        "positive_ctxs": [{"title": "", "text": P, "passage_id": "1"}],
        "hard_negative_ctxs": [{"title": "", "text": N}],
        "negative_ctxs": [{"text": M}],
    },
    "cohere": {"query": Q, "relevant_passages": [P], "hard_negatives": [N, M]},
    "nomic": {"query": Q, "document": P, "negative": [N, M], "dataset": "msmarco"},
    "a row of texts": [Q, P, N, M],
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    (example,) = load(tmp_path, [LISTS[name]]).examples()
    assert (example.query, example.candidates) == (Q, (P, N, M))
    assert stated(example) == (True, False, False) and example.relevance == (1, 0, 0)


PAIRS = {
    "st": {"anchor": Q, "positive": P},
    "st question answer": {"question": Q, "answer": P},
    "st title and body": {"title": Q, "body": P},
    "swift": {"query": Q, "response": P},
    "swift messages": {"messages": [TURN["user"]], "positive_messages": said(P)},
    "tevatron v1": {"query_id": "1", "query": Q, "positive_passages": [{"text": P}]},
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_without_negatives(tmp_path, name):
    (example,) = load(tmp_path, [PAIRS[name]]).examples()
    assert (example.query, example.candidates, stated(example)) == (Q, (P,), (True,))


LABELLED = {  # a query with two texts and their labels
    "st pairs": [{"query": Q, "document": P, "label": 1}, {"query": Q, "document": N, "label": 0}],
    "st scores": [{"sentence1": Q, "sentence2": P, "score": 1.0}, {"sentence1": Q, "sentence2": N, "score": 0.0}],
    "st booleans": [{"text_a": Q, "text_b": P, "label": True}, {"text_a": Q, "text_b": N, "label": False}],
    "st label first": [{"label": 1, "q": Q, "d": P}, {"label": 0, "q": Q, "d": N}],
    "st lists": [{"query": Q, "docs": [P, N], "labels": [1, 0]}],
    "st lists, our names": [{"query": Q, "documents": [P, N], "labels": [1, 0]}],
    "st lists, other names": [{"frage": Q, "texte": [P, N], "scores": [1, 0]}],
    "swift": [{"query": Q, "response": P, "label": 1}, {"query": Q, "response": N, "label": 0}],
    "flat": [{"query": Q, "content": P, "score": 1}, {"query": Q, "content": N, "score": 0}],
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels(tmp_path, name):
    examples = list(load(tmp_path, LABELLED[name]).examples())
    pairs = [pair for example in examples for pair in zip(example.candidates, example.relevance, strict=True)]
    assert {example.query for example in examples} == {Q} and pairs == [(P, 1.0), (N, 0.0)]
    assert [flag for example in examples for flag in stated(example)] == [True, False]


TAUGHT = {  # sentence-transformers' MarginMSE and DistillKLDiv: what the label says about positive and negatives
    "margin": ({"query": Q, "positive": P, "negative": N, "label": 3.5}, (0.0, -3.5)),
    "margins": ({"query": Q, "positive": P, "n1": N, "n2": M, "label": [3.5, -1]}, (0.0, -3.5, 1.0)),
    "scores": ({"query": Q, "positive": P, "n1": N, "n2": M, "scores": [5, 2, 6]}, (5.0, 2.0, 6.0)),
    "two scores": ({"query": Q, "positive": P, "negative": N, "label": [5, 2]}, (5.0, 2.0)),
}


@pytest.mark.parametrize("name", TAUGHT)
def test_a_label_beside_negatives_is_a_teachers(tmp_path, name):
    row, teacher = TAUGHT[name]
    (example,) = load(tmp_path, [row]).examples()
    assert example.teacher == teacher and example.relevant == (True, *[False] * (len(teacher) - 1))


def test_columns_of_later_records_are_read_by_the_names_of_the_first(tmp_path):
    rows = [{"anchor": Q, "positive": P, "negative": N}, {"negative": M, "positive": "b", "anchor": "a"}]
    records = load(tmp_path, rows)
    assert [example.candidates for example in records.examples()] == [(P, N), ("b", M)]
    assert records.report.order == ["anchor (anchor)", "positive (positive)", "negative (negative)"]
    with pytest.raises(BadRecords, match=r"data\.jsonl:2: no field 'positive' \(found: anchor, negative\)"):
        list(load(tmp_path, [rows[0], {"anchor": Q, "negative": N}]).examples())


def test_a_text_that_only_later_records_have_is_refused(tmp_path):
    """It would be lost without a word: its role is unknown."""
    rows = [{"anchor": Q, "positive": P}, {"anchor": "a", "positive": "b", "negative": N, "lang": "en", "note": None}]
    with pytest.raises(BadRecords, match=r"data\.jsonl:2: the field 'negative' holds a text, and the first record"):
        list(load(tmp_path, rows).examples())
    first, second = load(tmp_path, [{**rows[0], "negative": None}, rows[1]]).examples()
    assert (first.candidates, second.candidates) == ((P,), ("b", N))


@pytest.mark.parametrize("name", ["qid", "query_id", "pid", "docid", "uid"])
def test_ids_are_no_texts(tmp_path, name):
    (example,) = load(tmp_path, [{name: "q7", "anchor": Q, "positive": P}]).examples()
    assert (example.query, example.candidates) == (Q, (P,))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": Q, "positive_passages": {"docid": "1", "text": P}}, "positive_passages must be a list, got dict"),
        ({"query": Q, "positive_passages": [P], "negative_passages": N}, "negative_passages must be a list, got str"),
        ({"question": Q, "positive_ctxs": {"title": "", "text": P}}, "positive_ctxs must be a list, got dict"),
        ({"query": Q, "positive_document_ids": "12"}, "positive_document_ids must be a list, got str"),
        ({"sentence1": Q, "sentence2": P, "score": None}, "field 'score' is null"),
    ],
)
def test_what_is_no_list_is_not_read_letter_by_letter(tmp_path, record, message):
    with pytest.raises(BadRecords, match=message):
        list(load(tmp_path, [record]).examples())


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_by_the_order_of_their_columns(tmp_path, suffix):
    """Cells that a row does not fill are left out."""
    cut = {"csv": ",", "tsv": "\t"}[suffix]
    rows = [["query", "answer", "negative_1", "negative_2"], ["q", "a", "b", "c"], ["r", "d", "e", ""]]
    path = tmp_path / f"x.{suffix}"
    path.write_text("\n".join(cut.join(row) for row in rows))
    assert [e.candidates for e in Records(name="x", path=str(path)).examples()] == [("a", "b", "c"), ("d", "e")]


def test_classes_of_inference_are_no_grades(tmp_path):
    with pytest.raises(BadRecords, match="no format has these keys"):
        list(load(tmp_path, [{"premise": Q, "hypothesis": P, "label": 2}]).examples())


def test_what_is_not_used_is_named_once(tmp_path):
    rows = [{**LISTS["flag"], "session": 3, "ts": "x"}, {**LISTS["flag"], "query": "r", "position": 1}]
    records = load(tmp_path, rows)
    list(records.examples())
    assert records.report.unused == ["pos_id", "neg_id", "session", "ts", "position"]
    records = load(tmp_path, [{**LISTS["st n-tuple"], "source": "web", "url": "u"}], where={"source": ["web"]})
    list(records.examples())
    assert records.report.unused == ["url"]


@pytest.mark.parametrize("key", ["prompt", "prompt_for_query", "instruction"])
@pytest.mark.parametrize("name", ["flag", "rankpo", "tevatron v1", "swift messages", "st n-tuple", "nemo inline"])
def test_a_records_prompt_is_its_querys(tmp_path, key, name):
    records = load(tmp_path, [{**LISTS[name], key: "Answer: "}, LISTS[name]])
    first, second = records.examples()
    assert (first.query_prompt, second.query_prompt, first.query) == ("Answer: ", None, Q)
    assert key not in records.report.unused
    (mapped,) = load(tmp_path, [{**LISTS[name], "task": "T: "}], prompt="task").examples()
    assert mapped.query_prompt == "T: "
    (constant,) = load(tmp_path, [LISTS[name]], prompt="=T: ").examples()
    assert constant.query_prompt == "T: "


def test_flagembeddings_types(tmp_path):
    """Its AbsEmbedderSameDatasetTrainDataset: prompts on passages of sts and clustering, one negative of only_1neg."""
    types = ["symmetric_sts", "symmetric_clustering", "symmetric_class", "only_1neg", "normal", None, "news"]
    records = load(tmp_path, [{**LISTS["flag"], "type": name} for name in types])
    found = [(example.symmetric, example.max_negatives) for example in records.examples()]
    assert found == [(True, None), (True, None), (False, None), (False, 1), *[(False, None)] * 3]


@pytest.mark.parametrize("name", ["a-no_in_batch_neg.jsonl", "b_no_in_batch_neg/data.jsonl", "plain.jsonl"])
def test_flagembeddings_suffix(tmp_path, name):
    records = load(tmp_path, [LISTS["flag"]], name=name)
    assert [example.own_negatives for example in records.examples()] == [name != "plain.jsonl"]


def ids_record(positives=("d1",), negatives=("d2", "d3")):
    return {
        "query_id": "q1",
        "query_text": Q,
        "positive_document_ids": list(positives),
        "negative_document_ids": list(negatives),
    }


CORPORA = {
    "corpus.jsonl": [{"docid": "d1", "text": P}, {"docid": "d2", "text": N}, {"docid": "d3", "text": M}],
    "corpus/part.jsonl": [{"_id": "d1", "title": "", "text": P}, {"_id": "d2", "text": N}, {"_id": "d3", "text": M}],
    "train.corpus.jsonl": [{"docid": "d1", "document_text": P}, {"docid": "d2", "document_text": N}, {"docid": "d3", "document_text": M}],
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("given", [True, False])
def test_documents_by_id_with_a_corpus_beside(tmp_path, name, given):
    load(tmp_path, CORPORA[name], name=name)
    settings = {"corpus": str(tmp_path / name)} if given else {}
    records = load(tmp_path, [ids_record()], name="train.jsonl", **settings)
    before = records.fingerprint()
    (example,) = records.examples()
    assert (example.id, example.candidates, stated(example)) == ("q1", (P, N, M), (True, False, False))
    changed = [{**row, "text": f"{row.get('text')}!"} for row in CORPORA[name]]
    load(tmp_path, changed, name=name)
    assert load(tmp_path, [ids_record()], name="train.jsonl", **settings).fingerprint() != before


def test_a_folder_with_records_and_their_corpus(tmp_path):
    load(tmp_path, CORPORA["corpus.jsonl"], name="corpus.jsonl")
    load(tmp_path, [ids_record()], name="train.jsonl")
    (example,) = Records(name="x", path=str(tmp_path)).examples()
    assert example.candidates == (P, N, M)


def test_documents_that_are_not_there(tmp_path):
    with pytest.raises(BadRecords, match=r"names documents by id; set datasets\.x\.corpus"):
        list(load(tmp_path, [ids_record()], name="deep/er/train.jsonl").examples())
    load(tmp_path, CORPORA["corpus.jsonl"], name="corpus.jsonl")
    with pytest.raises(BadRecords, match=r"negative_document_ids\[1\]: the corpus has no document 'd9'"):
        list(load(tmp_path, [ids_record(negatives=("d2", "d9"))], name="train.jsonl").examples())
    load(tmp_path, CORPORA["corpus.jsonl"] * 2, name="corpus.jsonl")
    with pytest.raises(BadRecords, match=r"texts 1 and 4 of the corpus have the same id"):
        list(load(tmp_path, [ids_record()], name="train.jsonl").examples())


@pytest.mark.parametrize("as_text", [True, False])
def test_nemo_with_its_corpus(tmp_path, as_text):
    """One JSON object: corpora by folder, questions with ids; the folder has Parquet and settings."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"id": ["1", "2", "3"], "text": [P, N, M]})
    folder = tmp_path / "wiki"
    folder.mkdir()
    parquet.write_table(table, folder / "train.parquet")
    (folder / "merlin_metadata.json").write_text(json.dumps({"class": "TextQADataset", "corpus_id": "wiki"}))
    documents = [["1"], ["2", "3"]] if as_text else [[{"id": "1"}], [{"id": "2"}, {"id": "3"}]]
    data = {"question_id": "q9", "question": Q, "corpus_id": "wiki", "pos_doc": documents[0], "neg_doc": documents[1]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"corpus": [{"path": "wiki"}], "data": [data]}, indent=1))
    (example,) = Records(name="x", path=str(path)).examples()
    assert (example.id, example.candidates, stated(example)) == ("q9", (P, N, M), (True, False, False))


def test_ms_swift_and_tevatron_name_what_they_do_not_use(tmp_path):
    records = load(tmp_path, [{**LISTS["swift messages"], "images": []}, {**LISTS["swift messages"], "channel": "x"}])
    list(records.examples())
    assert records.report.unused == ["images", "channel"]


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "a\x00", "a\u2028b", "a\tb"])
def test_control_characters_in_ids_are_refused(tmp_path, bad):
    """A file of ids is lines: a carriage return shifts all later ones."""
    with pytest.raises(BadRecords, match=r"data\.jsonl:1: the id .* contains the control character"):
        list(load(tmp_path, [{**LISTS["flag"], "id": bad}]).examples())
    load(tmp_path, [{"docid": bad, "text": P}], name="corpus.jsonl")
    with pytest.raises(BadRecords, match=r"corpus\.jsonl:1: the id .* contains the control character"):
        list(load(tmp_path, [ids_record()], name="train.jsonl").examples())


def test_sets_of_texts(tmp_path):
    (example,) = load(tmp_path, [{"set": [Q, P, M]}]).examples()
    assert (example.query, example.candidates, stated(example)) == (Q, (P, M), (True, True))
    with pytest.raises(BadRecords, match="set must have two texts or more"):
        list(load(tmp_path, [{"set": [Q]}]).examples())


@pytest.mark.parametrize("indent", [None, 1])
def test_llamaindex_writes_one_object(tmp_path, indent):
    whole = {
        "queries": {"q1": Q, "q2": "x"},
        "corpus": {"d": P},
        "relevant_docs": {"q1": ["d"], "q2": ["e"]},
        "mode": "text",
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(whole, indent=indent))
    records = Records(name="x", path=str(path), on_bad_record="skip")
    (example,) = records.examples()
    assert (example.id, example.query, example.candidates) == ("q1", Q, (P,))
    assert records.report.places == ["datasets.x: train.json:relevant_docs[q2]: no text for e"]
