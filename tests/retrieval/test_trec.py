"""TREC runs and judgements: what is written comes back, and every bad line is named."""

import numpy as np
import pytest

from rankpo.data.readers.trec import read_qrels, read_run, write_run


def lines(tmp_path, *rows: str) -> str:
    path = tmp_path / "file.txt"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def test_a_written_run_has_our_order_and_comes_back(tmp_path):
    run = {"q2": {"a": 0.25, "c": 0.5, "b": 0.5}, "q1": {"x": -1.0}}
    write_run(tmp_path / "deep" / "run.trec", run, tag="soil")
    text = (tmp_path / "deep" / "run.trec").read_text()
    assert text == "q2 Q0 c 1 0.5 soil\nq2 Q0 b 2 0.5 soil\nq2 Q0 a 3 0.25 soil\nq1 Q0 x 1 -1 soil\n"
    said = []
    assert read_run(tmp_path / "deep" / "run.trec", said.append) == run
    assert said == []


def test_nine_digits_give_back_every_float32(tmp_path):
    """Neighbouring float32 numbers stay apart, so the order of a run survives."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.standard_normal(2000), rng.standard_normal(500) * 1e-7]).astype(np.float32)
    scores = np.unique(np.concatenate([scores, np.nextafter(scores, np.float32(9))]))
    run = {"q": {f"d{number}": float(score) for number, score in enumerate(scores)}}
    write_run(tmp_path / "run.trec", run)
    back = read_run(tmp_path / "run.trec")["q"]
    assert np.array_equal(np.array([back[name] for name in run["q"]], dtype=np.float32), scores)


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q 1": {"a": 1.0}}, "t", "the id 'q 1' is empty or has white space"),
        ({"q": {"": 1.0}}, "t", "the id '' is empty or has white space"),
        ({"q": {"a\t": 1.0}}, "t", r"the id 'a\\t' is empty"),
        ({"q": {"a": 1.0}}, "my run", "the tag 'my run' is empty or has white space"),
        ({"q": {"a": float("nan")}}, "t", "query q, document a: score nan"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path, run, tag, message):
    (tmp_path / "run.trec").write_text("before\n")
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run.trec", run, tag)
    assert [path.name for path in tmp_path.iterdir()] == ["run.trec"]
    assert (tmp_path / "run.trec").read_text() == "before\n"


@pytest.mark.parametrize(
    "header",
    [
        "query-id\tcorpus-id\tscore",
        "Query-ID\tCorpus-ID\tScore",
        "qid docid relevance",
        "query-id iter corpus-id score",
    ],
)
def test_a_header_of_judgements_is_skipped(tmp_path, header):
    row = "q 0 d 2" if header.count(" ") == 3 else "q d 2"
    assert read_qrels(lines(tmp_path, header, row)) == {"q": {"d": 2}}
    with pytest.raises(ValueError, match=r"file\.txt:2: '(score|Score|relevance)' is not a number"):
        read_qrels(lines(tmp_path, row, header))


@pytest.mark.parametrize("rows", [[], ["query-id\tcorpus-id\tscore"], ["", " "]])
def test_a_file_without_judgements_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=r"file\.txt holds no judgement"):
        read_qrels(lines(tmp_path, *rows))


@pytest.mark.parametrize("read", [read_qrels, read_run])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path, read):
    (tmp_path / "a").write_bytes("q 0 d 1\nq 0 é 1\n".encode("latin-1") if read is read_qrels else b"q d 1\nq \xe9 1\n")
    with pytest.raises(ValueError, match=r"a:2: not UTF-8: "):
        read(tmp_path / "a")


def test_three_columns_and_any_white_space(tmp_path):
    path = lines(tmp_path, "\ufeffq\ta  1", "", "q b\t2")
    assert read_run(path) == {"q": {"a": -1.0, "b": -2.0}}


def test_scores_rule_and_another_rank_column_is_said(tmp_path):
    path = lines(tmp_path, "q Q0 a 2 0.9 t", "q Q0 b 1 0.5 t", "r Q0 a 1 0.9 t", "r Q0 b 2 0.9 t")
    said = []
    assert read_run(path, said.append)["q"] == {"a": 0.9, "b": 0.5}
    assert said == [f"{path}: in 1 of 2 queries the order of the rank column differs; the order of scores is used"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q Q0 b 1", r"file.txt:2: 4 columns; a run has 6 \(qid Q0 docid rank score tag\) or 3"),
        ("q Q0 b 2 high t", "file.txt:2: 'high' is not a number"),
        ("q Q0 b 2 nan t", "file.txt:2: 'nan' is not a finite number"),
        ("q Q0 b first 0.1 t", "file.txt:2: 'first' is not a number"),
        ("q Q0 a 2 0.8 t", "file.txt:2: document a appears more than once in query q"),
    ],
)
def test_bad_lines_of_a_run(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_run(lines(tmp_path, "q Q0 a 1 0.9 t", row))


def test_qrels_of_both_kinds(tmp_path):
    expected = {"q": {"a": 2, "b": 0}, "r": {"a": -1}}
    assert read_qrels(lines(tmp_path, "q 0 a 2", "q 0 b 0", "r 0 a -1", "r 0 a -1")) == expected
    assert read_qrels(lines(tmp_path, "query-id\tcorpus-id\tscore", "q\ta\t2", "q\tb\t0.0", "r\ta\t-1")) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q a", r"file.txt:2: 2 columns; qrels have 4 \(qid 0 docid grade\) or 3"),
        ("q 0 b x", "file.txt:2: 'x' is not a number"),
        ("q 0 b 0.5", "file.txt:2: the grade 0.5 is not a whole number"),
        ("q 0 b nan", "file.txt:2: 'nan' is not a finite number"),
        ("q 0 a 1", "file.txt:2: q a has two grades, 2 and 1"),
        ("query-id corpus-id score", "file.txt:2: 'score' is not a number"),
    ],
)
def test_bad_lines_of_qrels(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_qrels(lines(tmp_path, "q 0 a 2", row))


def test_ir_measures_reads_our_run(tmp_path):
    ir_measures = pytest.importorskip("ir_measures", reason="the dev extra is not installed")
    run = {"q": {"a": 0.125, "b": 3.5e-8}}
    write_run(tmp_path / "run.trec", run)
    found = {(row.query_id, row.doc_id): row.score for row in ir_measures.read_trec_run(str(tmp_path / "run.trec"))}
    assert found == {("q", "a"): 0.125, ("q", "b"): 3.5e-8}


def test_lines_with_tabs_are_split_there(tmp_path):
    """An id with blanks, as BEIR's tables may have; tabs between the columns of trec_eval's form still are white space."""
    path = lines(tmp_path, "query-id\tcorpus-id\tscore", "q1\tLake Constance\t1", "q 2\td\t2", "q3 0 d5\t1")
    assert read_qrels(path) == {"q1": {"Lake Constance": 1}, "q 2": {"d": 2}, "q3": {"d5": 1}}
    path = lines(tmp_path, "q1\tQ0\tLake Constance\t1\t0.5\tt", "q1 Q0 d\t2  0.25 t")
    assert read_run(path) == {"q1": {"Lake Constance": 0.5, "d": 0.25}}


def test_a_carriage_return_ends_no_line(tmp_path):
    """Python's universal line ends would make two lines of one."""
    path = tmp_path / "qrels.tsv"
    path.write_bytes(b"q1\ta\rb\t1\r\nq2\tc\t1\r\n")
    assert read_qrels(path) == {"q1": {"a\rb": 1}, "q2": {"c": 1}}
