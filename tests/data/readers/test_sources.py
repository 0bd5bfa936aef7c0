"""Records: the real samples' counts, merging, conflicts, filters, bad records, and what the command line can set."""

import json
import random
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers import line_groups
from rankpo.data.readers.passes import BadRecords
from rankpo.data.readers.records import Records
from rankpo.errors import ConfigError

PAIR = {"query": "q", "passage1": "a", "passage2": "b", "preferred": "A"}


def write(folder: Path, rows, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load(path: str, **settings) -> Records:
    return Records(name="soil", path=path, **settings)


def bad_lines(records: Records) -> list[str]:
    with pytest.raises(BadRecords) as caught:
        list(records.examples())
    return str(caught.value).splitlines()


def test_golden_counts_of_the_contrastive_sample(shared_data):
    """The file has 10 rows, 28 positives (1 to 10 a row), 100 negatives, 124 distinct texts, no conflict."""
    records = load(str(shared_data / "rankpo" / "contrastive.jsonl"))
    examples = list(records.examples())
    positives = [sum(example.relevance) for example in examples]
    assert (len(examples), sum(positives), min(positives), max(positives)) == (10, 28, 1, 10)
    assert sum(len(example.candidates) for example in examples) - 28 == 100
    assert len({text for example in examples for text in example.candidates}) == 124
    assert records.report.formats == ["contrastive"]
    assert records.report.conflicts == records.report.merged == 0


def test_lone_texts_under_names_of_the_map(tmp_path):
    """anchor, positive, negative: the form in which most triplets are published."""
    path = write(tmp_path, [{"anchor": "q", "positive": "a", "negative": "b"}])
    (example,) = load(path, query="anchor", positives="positive", negatives="negative").examples()
    assert (example.candidates, example.relevance) == (("a", "b"), (1.0, 0.0))


def test_a_name_of_the_map_that_no_record_has_is_an_error(tmp_path):
    rows = [{"search": "q", "positives": ["a"], "hard_1": "b"}, {"search": "r", "positives": ["c"]}]
    path = write(tmp_path, rows)
    assert [
        len(e.candidates) for e in load(path, query="search", positives="positives", negatives="hard_*").examples()
    ] == [2, 1]
    with pytest.raises(ValueError, match=r"datasets\.soil\.negatives=hrd_\*: no record has it"):
        list(load(path, query="search", positives="positives", negatives="hrd_*").examples())


def test_scores_of_a_teacher_beside_positives_and_negatives(tmp_path):
    row = {"query": "q", "positives": ["a"], "negatives": ["b", "c"], "pos_scores": [9], "neg_scores": [1, -2]}
    path = write(tmp_path, [row])
    assert next(load(path, scores_are="teacher").examples()).teacher == (9.0, 1.0, -2.0)
    example = next(load(path).examples())
    assert (example.teacher, example.grades, example.relevance) == ((9.0, 1.0, -2.0), (9.0, 1.0, -2.0), (1.0, 0.0, 0.0))
    short = write(tmp_path, [{**row, "neg_scores": [1]}], "short.jsonl")
    assert (
        "neg_scores must have one number for each of negatives (2), got 1"
        in bad_lines(load(short, scores_are="teacher"))[0]
    )


def test_null_is_said_to_be_null(tmp_path):
    path = write(tmp_path, [PAIR, {**PAIR, "query": None}])
    assert bad_lines(load(path)) == ["datasets.soil: data.jsonl:2: field 'query' is null"]


@pytest.mark.parametrize(("bar", "kept"), [(0, 60), (80, 56), (90, 47), (95, 36)])
def test_golden_counts_of_the_preference_sample(shared_data, bar, kept):
    """The file has 60 rows of 60 queries, 119 distinct passages; the bars 80, 90, 95 keep 56, 47, 36."""
    path = shared_data / "rankpo" / "preferences.jsonl"
    records = load(str(path), min_confidence=bar)
    examples = list(records.examples())
    assert (len(examples), records.report.filtered) == (kept, 60 - kept)
    if bar:
        return
    assert len({example.query for example in examples}) == 60
    assert len({text for example in examples for text in example.candidates}) == 119
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = [row["passage1"].strip() == example.candidates[0] for row, example in zip(rows, examples, strict=True)]
    assert (sum(first), len(first) - sum(first)) == (39, 21)  # A is preferred 39 times


def test_real_files_of_another_project(shared_data):
    """RAG-Retrieval's three forms of the same hundred queries."""
    folder = shared_data / "t2ranking"
    flat = load(str(folder / "t2rank_100.distill.jsonl"))
    lists = load(str(folder / "t2rank_100.jsonl"), on_bad_record="skip")
    flat_queries, list_queries = ({example.query for example in data.examples()} for data in (flat, lists))
    assert flat.report.formats == ["flat"] and lists.report.formats == ["pos_neg"]
    assert len(flat_queries) == 100 and list_queries <= flat_queries


def test_where_a_record_stands_is_its_id_and_source(tmp_path):
    path = write(tmp_path, [PAIR, "", {**PAIR, "id": 7}])
    assert [(e.id, e.source) for e in load(path).examples()] == [
        ("soil:data.jsonl:1", "data.jsonl:1"),
        ("7", "data.jsonl:3"),
    ]
    path = write(tmp_path, [{**PAIR, "meta": {"key": "x9"}}])
    assert [example.id for example in load(path, id="meta.key").examples()] == ["x9"]


def test_equal_candidates_become_one_with_the_larger_relevance(tmp_path):
    rows = [
        {"query": "q", "positives": ["a", " a  "], "negatives": ["b"]},
        {"query": "q", "positives": ["c"], "negatives": ["caf\u00e9", "c", "cafe\u0301"]},
    ]
    records = load(write(tmp_path, rows))
    first, second = records.examples()
    assert (first.candidates, first.relevance) == (("a", "b"), (1, 0))
    assert (second.candidates, second.relevance) == (("c", "caf\u00e9"), (1, 0))
    assert (records.report.merged, records.report.conflicts) == (3, 1)
    assert records.report.merged_places[0] == "data.jsonl:1" and records.report.conflict_places == ["data.jsonl:2"]
    assert records.report.summary() == (
        "2 rows (contrastive), 3 equal candidates merged (first: data.jsonl:1), "
        "1 both positive and negative (first: data.jsonl:2)"
    )


def test_the_larger_label_keeps_its_teacher_score(tmp_path):
    row = {"query": "q", "pos": ["a"], "neg": ["b", "a"], "pos_scores": [0.2], "neg_scores": [0.1, 0.9]}
    (example,) = load(write(tmp_path, [row]), scores_are="teacher").examples()
    assert (example.candidates, example.relevance, example.teacher) == (("a", "b"), (1, 0), (0.2, 0.1))
    (example,) = load(write(tmp_path, [row])).examples()
    assert (example.relevance, example.relevant, example.grades) == ((1, 0), (True, False), (0.2, 0.1))


def test_conflicts_can_be_an_error(tmp_path):
    row = {"query": "q", "positives": ["a"], "negatives": ["a"]}
    assert bad_lines(load(write(tmp_path, [row]), conflicts="error")) == [
        "datasets.soil: data.jsonl:1: a candidate is both positive and negative; set conflicts=merge to keep the positive"
    ]
    rows = [{"query": "q", "content": "a", "label": 1}, {"query": "q", "content": "a", "label": 0}]
    assert bad_lines(load(write(tmp_path, rows), conflicts="error"))[0].startswith(
        "datasets.soil: data.jsonl:1: a cand"
    )


def raw(index: list, texts: list[str]):
    return {"query": {"text": "soil"}, "positives": {"text": texts, "index": index}, "negatives": {"text": ["other"]}}


def test_indices_of_raw_records_are_compared_with_the_corpus(tmp_path):
    """Lines from 0; white space may differ, nothing else; a corpus is asked for indices."""
    corpus = write(tmp_path, [{"text": "coins"}, {"text": "clay  soils"}, {"text": "graphs"}], "corpus.jsonl")
    path = write(tmp_path, [raw([1, 2], ["clay soils", "graphs"])])
    (example,) = load(path, corpus=corpus).examples()
    assert example.candidates == ("clay soils", "graphs", "other")
    bad = [
        raw([3], ["graphs"]),
        raw([-1], ["graphs"]),
        raw([0], ["graphs"]),
        {**raw([0], ["coins"]), "positives": {"text": ["coins"]}},
    ]
    assert bad_lines(load(write(tmp_path, bad), corpus=corpus)) == [
        "datasets.soil: data.jsonl:1: positives.index[0] is 3; the corpus has 3 lines",
        "datasets.soil: data.jsonl:2: positives.index[0] is -1; the corpus has 3 lines",
        "datasets.soil: data.jsonl:3: positives.index[0] is 0, but that line of the corpus has another text",
        "datasets.soil: data.jsonl:4: no positives.index, and datasets.soil.corpus needs it for the check of texts",
    ]
    path = write(tmp_path, [raw([0], ["coins"])])
    with pytest.raises(BadRecords, match=r"datasets.soil.corpus: other.jsonl:1: no text under 'text'"):
        list(load(path, corpus=write(tmp_path, [{"body": "x"}], "other.jsonl")).examples())
    with pytest.raises(FileNotFoundError, match="corpus: /nowhere does not exist"):
        load(path, corpus="/nowhere")


def test_a_candidate_equal_to_the_query_is_bad(tmp_path):
    assert bad_lines(load(write(tmp_path, [{"query": "a b", "positives": ["a  b"]}]))) == [
        "datasets.soil: data.jsonl:1: a candidate is equal to the query"
    ]


def test_flat_lines_of_a_query_are_one_example_also_when_apart(tmp_path):
    """Order of first appearance; the filters act on lines; a bad line is named, the first one too."""
    rows = [
        "no json",
        {"query": "x", "content": "a", "label": 3, "split": "train"},
        {"query": "y", "content": "b", "score": 0.5, "split": "train"},
        {"query": "x", "content": "c", "label": 0, "split": "train"},
        {"query": "x", "content": "d", "label": 9, "split": "test"},
        {"query": "y", "content": "e", "split": "train"},
    ]
    records = load(write(tmp_path, rows), on_bad_record="skip", where={"split": ["train"]})
    assert [(e.query, e.candidates, e.relevance, e.source) for e in records.examples()] == [
        ("x", ("a", "c"), (3, 0), "data.jsonl:2"),
        ("y", ("b",), (0.5,), "data.jsonl:3"),
    ]
    assert (records.report.rows, records.report.filtered) == (3, 1)
    assert [line.split(": ")[1] for line in records.report.places] == ["data.jsonl:1", "data.jsonl:6"]


def test_flat_lines_in_a_file_are_the_same_as_in_memory(tmp_path, monkeypatch):
    """Lines of many queries in a random order, with prompts and ids; one query's lines keep their order."""
    draw = random.Random(0)
    rows = [
        {"query": f"q{draw.randint(0, 40)}", "content": f"größe {n}", "label": n / 7, "id": n, "prompt": f"p{n}: "}
        for n in range(300)
    ]
    path = write(tmp_path, rows)
    expected: dict[str, list[dict]] = {}
    for row in rows:
        expected.setdefault(row["query"], []).append(row)
    for size in (1 << 25, 1):
        monkeypatch.setattr(line_groups, "IN_MEMORY", size)
        found = list(load(path, id="id").examples())
        assert [example.query for example in found] == list(expected)
        assert [(e.id, e.query_prompt, e.candidates, e.relevance) for e in found] == [
            (
                str(own[0]["id"]),
                own[0]["prompt"],
                tuple(row["content"] for row in own),
                tuple(row["label"] for row in own),
            )
            for own in expected.values()
        ]


def test_many_flat_lines_need_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(line_groups, "IN_MEMORY", 1)
    rows = [{"query": f"q{n % 500}", "content": f"{n} {'x' * 3000}", "label": 1.0} for n in range(2000)]
    path = write(tmp_path, rows)
    tracemalloc.start()
    try:
        assert sum(len(example.candidates) for example in load(path).examples()) == 2000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # The file has 6 MB.
    finally:
        tracemalloc.stop()


def test_grouped_is_the_same_as_flat(tmp_path):
    hits = [{"content": "a", "label": 2}, {"content": "b", "label": 0}]
    flat = write(tmp_path, [{"query": "q", **hit} for hit in hits], "flat.jsonl")
    grouped = write(tmp_path, [{"query": "q", "hits": hits}], "grouped.jsonl")
    settings = {"min_label": 0, "max_label": 4}
    (first,), (second,) = (load(path, **settings).examples() for path in (flat, grouped))
    assert replace(first, id="", source="") == replace(second, id="", source="")
    assert first.relevance == (0.5, 0)


def test_field_maps_reach_other_names(tmp_path):
    rows = [
        {"request": {"title": "T", "text": "soil"}, "answers": [{"body": "u", "grade": 3}, {"body": "v", "grade": 0}]}
    ]
    records = load(
        write(tmp_path, rows),
        query=["request.title", "request.text"],
        candidates="answers[].body",
        relevance="answers[].grade",
        min_label=0,
        max_label=3,
    )
    (example,) = records.examples()
    assert (example.query, example.candidates, example.relevance) == ("T soil", ("u", "v"), (1, 0))
    (example,) = load(write(tmp_path, [{"ask": "q", "content": "a", "mark": 2}]), query="ask", label="mark").examples()
    assert example.relevance == (2,)


def test_csv_goes_through_the_same_checks(tmp_path):
    path = write(tmp_path, ["query,passage1,passage2,preferred,confidence_score", "q,a,b,B,90", "r,a,b,A,40"], "a.csv")
    (example,) = load(path, min_confidence=50).examples()
    assert (example.candidates, example.confidence) == (("b", "a"), 0.9)


def test_where_and_limit(tmp_path):
    path = write(tmp_path, [{**PAIR, "query": f"q{n}", "meta": {"lang": "en" if n % 2 else "de"}} for n in range(6)])
    records = load(path, where={"meta.lang": ["en"]})
    assert [example.query for example in records.examples()] == ["q1", "q3", "q5"]
    assert records.report.filtered == 3
    assert [example.query for example in load(path, limit=2).examples()] == ["q0", "q1"]
    two = write(tmp_path, [{**PAIR, "query": "other"}], "second.jsonl")
    assert [e.query for e in load([path, two], limit=7).examples()][-1] == "other"


def test_nothing_left_is_an_error(tmp_path):
    path = write(tmp_path, [PAIR])
    with pytest.raises(ValueError, match=r"datasets.soil: no example is left: 0 rows \(no format\), 1 filtered"):
        list(load(path, where={"split": ["train"]}).examples())
    with pytest.raises(ValueError, match=r"datasets.soil: no example is left"):
        list(load(write(tmp_path, [], "empty.jsonl")).examples())


def test_the_bar_itself_is_kept(tmp_path):
    path = write(tmp_path, [{**PAIR, "confidence_score": score} for score in (56.9, 57, 58)])
    assert [example.confidence for example in load(path, min_confidence=57).examples()] == [0.57, 0.58]


def test_a_bar_on_confidence_needs_confidence(tmp_path):
    lines = bad_lines(load(write(tmp_path, [{**PAIR, "confidence_score": 90}, PAIR]), min_confidence=80))
    assert lines == ["datasets.soil: data.jsonl:2: no confidence_score, which datasets.soil.min_confidence needs"]


def test_errors_are_collected_and_raised_once(tmp_path):
    rows = [PAIR, {**PAIR, "preferred": "C"}, "{", PAIR, {"query": "q", "passage1": "a"}]
    assert bad_lines(load(write(tmp_path, rows))) == [
        "datasets.soil: data.jsonl:2: preferred is 'C'; allowed: A, B",
        "datasets.soil: data.jsonl:3: not JSON: unexpected end of data: line 1 column 2 (char 1)",
        "datasets.soil: data.jsonl:5: no field 'passage2' (found: query, passage1); set datasets.soil.passage2=<one of these>",
    ]


def test_at_most_twenty_are_shown(tmp_path):
    lines = bad_lines(load(write(tmp_path, [PAIR, *["{"] * 30])))
    assert len(lines) == 21 and lines[-1] == "(only the first twenty are shown)"


def test_a_limit_does_not_hide_bad_records_before_it(tmp_path):
    assert len(bad_lines(load(write(tmp_path, [PAIR, "{", PAIR, PAIR]), limit=2))) == 1


def test_skip_leaves_out_counts_and_lists(tmp_path):
    records = load(write(tmp_path, ["{", PAIR, {**PAIR, "preferred": 1}, PAIR]), on_bad_record="skip")
    assert len(list(records.examples())) == 2
    assert [line.split(": ", 2)[1] for line in records.report.places] == ["data.jsonl:1", "data.jsonl:3"]
    assert records.report.summary() == "2 rows (preferences), 2 bad records skipped"


def test_an_unknown_format_is_said_once(tmp_path):
    lines = bad_lines(load(write(tmp_path, [{"ad": "x", "good": {"a": 1}}] * 30)))
    assert len(lines) == 1 and "no format has these keys (found: ad, good)" in lines[0]


def test_each_file_has_a_format_of_its_own(tmp_path):
    write(tmp_path, [PAIR], "a.jsonl")
    write(tmp_path, [{"query": "q", "positives": ["a"]}], "b.jsonl")
    records = load(str(tmp_path))
    assert [len(example.candidates) for example in records.examples()] == [2, 1]
    assert records.report.formats == ["preferences", "contrastive"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "beer"}, "format must be one of auto, contrastive"),
        ({"on_bad_record": "ignore"}, "on_bad_record must be one of error, skip, got 'ignore'"),
        ({"min_confidence": 101}, "min_confidence must be in 0 to 100, got 101"),
        ({"min_label": 0}, "max_label must be > min_label, got 0 and None"),
        ({"min_label": 2, "max_label": 2}, "max_label must be > min_label, got 2 and 2"),
        ({"limit": 0}, "limit must be >= 1 or null, got 0"),
        ({"weight": -1}, "weight must be >= 0, got -1"),
        ({"where": {"split": "train"}}, "where.split must be a list of allowed values, got 'train'"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, [PAIR]), **settings)


def test_the_fingerprint_follows_content_and_settings_not_the_place(tmp_path):
    (tmp_path / "moved").mkdir()
    path, moved = write(tmp_path, [PAIR]), write(tmp_path / "moved", [PAIR])
    assert load(path).fingerprint() == load(moved).fingerprint() == load(path, weight=2.0).fingerprint()
    others = [load(path, min_confidence=1), load(path, query="q"), load(write(tmp_path, [PAIR, PAIR], "b.jsonl"))]
    assert len({load(path).fingerprint(), *(data.fingerprint() for data in others)}) == 4


def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    path = write(tmp_path, [PAIR])
    program = f"from rankpo.data.readers.records import Records; import sys; sys.stdout.write(Records(name='soil', path={path!r}).fingerprint())"
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == load(path).fingerprint()


def test_the_command_line_sets_roles(tmp_path):
    path = write(tmp_path, [{"ad": {"text": "q"}, "good": ["a"], "bad": ["b"]}])
    experiment = compose(
        [
            "model=tiny_bert", "datasets=[jsonl]", f"datasets.jsonl.path={path}", "datasets.jsonl.query=ad.text",
            "datasets.jsonl.positives=good", "datasets.jsonl.negatives=bad",
        ]
    )  # fmt: skip
    (example,) = experiment.datasets[0].examples()
    assert (example.query, example.candidates, example.relevance) == ("q", ("a", "b"), (1, 0))


def test_a_path_that_is_not_there_is_named_by_its_own_group(tmp_path):
    with pytest.raises(ConfigError, match=r"^eval_datasets.jsonl.path: /nowhere does not exist"):
        compose(["model=tiny_bert", "eval_datasets=[jsonl]", "eval_datasets.jsonl.path=/nowhere"])
