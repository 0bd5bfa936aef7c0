"""Each record format: what it becomes, how it is recognised, and what is said of a record that does not fit."""

import pytest

from rankpo.data.readers.fields import BadRecord, FieldMap, Options, extract, normal
from rankpo.data.readers.formats import FORMATS, detect

PLAIN = Options({}, key="datasets.soil")
SOIL = "Lecturer in soil physics"
RECORDS = {
    "contrastive": {"query": SOIL, "positives": ["clay"], "negatives": ["coins", "graphs"]},
    "contrastive_raw": {
        "query": {"text": SOIL},
        "positives": {"text": ["clay"], "index": [17]},
        "negatives": {"text": ["coins", "graphs"]},
    },
    "preferences": {"query": SOIL, "passage1": "coins", "passage2": "clay", "preferred": "B", "confidence_score": 85},
    "pos_neg": {"query": SOIL, "pos": ["clay"], "neg": ["coins"], "pos_scores": [0.93], "neg_scores": [0.21]},
    "grouped": {"query": SOIL, "hits": [{"content": "clay", "label": 2}, {"content": "coins", "score": 0}]},
}


def parse(name, record, options=PLAIN):
    return FORMATS[name](record, options)


def without(record, path):
    *parents, last = path.split(".")
    copy = {**record}
    inner = copy
    for parent in parents:
        inner[parent] = {**inner[parent]}
        inner = inner[parent]
    del inner[last]
    return copy


@pytest.mark.parametrize(
    ("name", "candidates", "relevance"),
    [
        ("contrastive", ["clay", "coins", "graphs"], [1, 0, 0]),
        ("contrastive_raw", ["clay", "coins", "graphs"], [1, 0, 0]),
        ("preferences", ["clay", "coins"], [1, 0]),  # B is passage2, and the chosen one stands first
        ("pos_neg", ["clay", "coins"], [1, 0]),
        ("grouped", ["clay", "coins"], [2, 0]),
    ],
)
def test_each_format_gives_candidates_and_relevance(name, candidates, relevance):
    parsed = parse(name, RECORDS[name])
    assert (parsed.query, parsed.candidates, parsed.relevance) == (SOIL, candidates, relevance)


def test_each_format_is_recognised_by_its_keys():
    of_other_tools = {
        "labeled_list",
        "tevatron",
        "ids",
        "nemo",
        "swift_messages",
        "swift",
        "ordered",
        "dpr",
        "cohere",
    }
    assert set(RECORDS) | {"flat", "columns", "set"} | of_other_tools == set(FORMATS)  # test_layouts.py
    for name, record in RECORDS.items():
        assert detect(record, {}) == name
    assert detect({"query": "q", "content": "c", "label": 1}, {}) == "flat"
    assert detect({"anything": "q", "else": ["a"]}, {"query": "anything", "candidates": "else"}) == "columns"
    assert detect({"ad": {"text": "q"}, "good": ["a"]}, {"query": "ad.text", "positives": "good"}) == "contrastive"
    assert detect({"a": "q", "b": "q", "good": "x"}, {"query": ["a", "b"], "positives": "good"}) == "contrastive"
    assert detect({"query": "q", "pos": ["a"]}, {"positives": "pos"}) == "pos_neg"
    assert detect(RECORDS["preferences"], {"query": "query"}) == "preferences"


def test_unknown_and_ambiguous_records_name_their_keys():
    with pytest.raises(
        BadRecord, match=r"no format has these keys \(found: ad, good\).*contrastive: query, positives;"
    ):
        detect({"ad": "q", "good": {"a": 1}}, {})
    with pytest.raises(BadRecord, match=r"; datasets=\[chat\] reads records with such keys"):
        detect({"prompt": "q", "chosen": "a", "rejected": "b"}, {})
    with pytest.raises(BadRecord, match="contrastive and pos_neg both have these keys"):
        detect({"query": "q", "positives": ["a"], "pos": ["a"]}, {})


NEEDED = [
    ("contrastive", "query", "no field 'query' (found: positives, negatives); set datasets.soil.query=<one of these>"),
    ("contrastive", "positives", "no field 'positives' (found: query, negatives); set datasets.soil.positives=<one of these>"),
    ("contrastive_raw", "query.text", "query must be an object with text, as in the first record of the file, got "),
    ("contrastive_raw", "positives.text", "positives must be an object with text, as in the first record of the file, got index"),
    ("preferences", "passage1", "no field 'passage1' (found: query, passage2, preferred, confidence_score); set datasets.soil.passage1=<one of these>"),
    ("preferences", "preferred", "no field 'preferred' (found: query, passage1, passage2, confidence_score)"),
    ("pos_neg", "pos", "no field 'pos' (found: query, neg, pos_scores, neg_scores)"),
    ("grouped", "hits", "no field 'hits' (found: query)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "message"), NEEDED, ids=[f"{name}-{key}" for name, key, _ in NEEDED])
def test_a_missing_key_is_named_with_what_is_there(name, key, message):
    with pytest.raises(BadRecord) as caught:
        parse(name, without(RECORDS[name], key))
    assert str(caught.value).startswith(message)


def test_the_example_of_the_design():
    """The message proposes the likely key, under the name by which the command line sets it."""
    with pytest.raises(BadRecord) as caught:
        parse("contrastive", {"query": "q", "pos": ["a"], "neg": ["b"]}, Options({}, key="datasets.jobs"))
    assert str(caught.value) == "no field 'positives' (found: query, pos, neg); set datasets.jobs.positives=pos"
    with pytest.raises(BadRecord) as caught:
        parse("contrastive", {"query": "q", "pos": ["a"]}, Options({"positives": "good"}, key="datasets.jobs"))
    assert str(caught.value) == "no field 'good' (found: query, pos); datasets.jobs.positives=good names it"


BAD = [
    ("contrastive", {"query": " \n"}, "query is empty"),
    ("contrastive", {"query": 3}, "query must be a text, got int"),
    ("contrastive", {"positives": "clay"}, "positives must be a list of texts, got str"),
    ("contrastive", {"positives": []}, "positives is empty"),
    ("contrastive", {"positives": ["clay", ""]}, "positives[1] is empty"),
    ("contrastive", {"negatives": [None]}, "negatives[0] must be a text, got NoneType"),
    ("contrastive_raw", {"query": "soil"}, "query must be an object with text, as in the first record of the file, got str"),
    ("contrastive_raw", {"positives": {"text": ["a"], "index": [1, 2]}}, "positives.index must have one number for each of positives.text (1), got 2"),
    ("preferences", {"preferred": "C"}, "preferred is 'C'; allowed: A, B"),
    ("preferences", {"preferred": "b"}, "preferred is 'b'; allowed: A, B"),
    ("preferences", {"passage1": "clay "}, "passage1 and passage2 are equal"),
    ("preferences", {"passage1": "caf\u00e9  x", "passage2": "cafe\u0301 x"}, "passage1 and passage2 are equal"),
    ("preferences", {"confidence_score": 101}, "confidence_score is 101; allowed: 0 to 100"),
    ("preferences", {"confidence_score": True}, "confidence_score must be a finite number, got True"),
    ("pos_neg", {"neg": None}, "neg_scores without neg"),
    ("pos_neg", {"neg_scores": [0.1, 0.2]}, "neg_scores must have one number for each of neg (1), got 2"),
    ("pos_neg", {"pos_scores": [float("nan")]}, "pos_scores[0] must be a finite number, got nan"),
    ("pos_neg", {"pos": [], "neg": [], "pos_scores": None, "neg_scores": None}, "no candidate at all"),
    ("grouped", {"hits": []}, "hits must be a list that is not empty"),
    ("grouped", {"hits": ["clay"]}, "hits[0] must be an object, got str"),
    ("grouped", {"hits": [{"content": "clay"}]}, "no field 'hits[0].label' (found: content); every text needs a label"),
    ("grouped", {"hits": [{"content": "clay", "label": "high"}]}, "hits[0].label must be a number, got 'high'"),
    ("grouped", {"hits": [{"content": "clay", "label": True}]}, "hits[0].label must be a finite number, got True"),
    ("grouped", {"hits": [{"label": 1}]}, "hits[0].content must be a text, got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_values_are_refused(name, change, message):
    with pytest.raises(BadRecord) as caught:
        parse(name, {**RECORDS[name], **change})
    assert str(caught.value) == message


def test_labels_are_scaled_to_the_unit_range():
    """(label - min)/(max - min), also from a negative minimum; outside the range is bad."""
    hits = [{"content": text, "label": label} for text, label in (("a", -1), ("b", 0), ("c", 3))]
    options = Options({}, min_label=-1, max_label=3)
    assert parse("grouped", {"query": "q", "hits": hits}, options).relevance == [0, 0.25, 1]
    with pytest.raises(BadRecord, match=r"label 3.5 is outside \[-1, 3\]"):
        parse("grouped", {"query": "q", "hits": [{"content": "a", "label": 3.5}]}, options)


def test_scores_of_a_teacher_leave_the_lists_as_labels():
    options = Options({}, scores_are="teacher")
    parsed = parse("pos_neg", RECORDS["pos_neg"], options)
    assert (parsed.relevance, parsed.teacher) == ([1, 0], [0.93, 0.21])
    parsed = parse("grouped", RECORDS["grouped"], options)
    assert (parsed.relevance, parsed.teacher) == ([2, 0], [2, 0])


def test_confidence_is_a_fraction_and_may_be_missing():
    assert parse("preferences", RECORDS["preferences"]).confidence == 0.85
    assert parse("preferences", without(RECORDS["preferences"], "confidence_score")).confidence is None


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("a.b", 1),
        ("list[]", ["x", "y"]),
        ("answers[].body", ["u", "v"]),
        ("answers[].grade", [2, None]),
        ("neg_*", ["first", "second", "tenth"]),  # by number, not by letter; neg_x is no column of a number
        (["title", "a.b"], "T 1"),
        (["title", "nothing"], None),
        ("=constant", "constant"),
        ("odd.key", "a key with a dot"),
        ("title.b", None),
        ("title[]", None),
        ("title_*", None),
    ],
)
def test_paths(spec, value):
    record = {
        "a": {"b": 1}, "list": ["x", "y"], "title": "T", "odd.key": "a key with a dot",
        "answers": [{"body": "u", "grade": 2}, {"body": "v"}],
        "neg_10": "tenth", "neg_1": "first", "neg_2": "second", "neg_x": "no number",
    }  # fmt: skip
    assert extract(record, spec) == value


def test_columns_follow_the_map():
    record = {
        "request": {"title": "T", "text": "soil"},
        "answers": [{"body": "u", "grade": 3}, {"body": "v", "grade": 0}],
    }
    options = Options(
        {"query": ["request.title", "request.text"], "candidates": "answers[].body", "relevance": "answers[].grade"},
        min_label=0,
        max_label=3,
    )
    parsed = parse("columns", record, options)
    assert (parsed.query, parsed.candidates, parsed.relevance) == ("T soil", ["u", "v"], [1, 0])
    pair = parse(
        "columns", {"a": "x", "b": "y", "s": 0.4}, Options({"query": "a", "candidates": "b", "relevance": "s"})
    )
    assert (pair.candidates, pair.relevance) == (["y"], [0.4])
    row = {"question": "q", "answer": "good", "negative_2": "worse", "negative_1": "bad"}
    triplet = parse("columns", row, Options({"query": "question", "positives": "answer", "negatives": "negative_*"}))
    assert (triplet.candidates, triplet.relevance) == (["good", "bad", "worse"], [1, 0, 0])
    with pytest.raises(BadRecord, match=r"relevance must have one number for each of candidates \(2\), got 1"):
        parse("columns", {**record, "answers": [{"body": "u"}, {"body": "v"}], "g": [1]}, Options({**options.fields, "relevance": "g"}))  # fmt: skip


def test_the_field_map_lists_what_is_set():
    assert FieldMap(query="ad", negatives=["a", "b"]).mapped() == {"query": "ad", "negatives": ["a", "b"]}


def test_texts_are_compared_after_nfc_and_white_space():
    assert normal(" cafe\u0301\n  x ") == "caf\u00e9 x"
