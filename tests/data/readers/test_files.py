"""Files of every kind give the same records, each with the place it came from."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from rankpo.data.readers import files, json_scanner
from rankpo.data.readers.files import NotARecord, find, records
from rankpo.data.readers.json_records import envelope

ROWS = [{"query": "größte Stadt", "n": 1}, {"query": "tab\there", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path):
    return list(records(path))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n"),
        LINES.rstrip("\n"),
        LINES + "\n  \n",
    ],
    ids=["plain", "bom", "crlf", "no last line end", "blank last lines"],
)
def test_json_lines(tmp_path, content):
    assert read(write(tmp_path / "a.jsonl", content)) == [("a.jsonl:1", ROWS[0]), ("a.jsonl:2", ROWS[1])]


def test_blank_lines_are_counted_in_places(tmp_path):
    assert [place for place, _ in read(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))] == [
        "a.jsonl:1",
        "a.jsonl:3",
    ]


def test_json_array_and_json_lines_under_the_name_json(tmp_path):
    assert read(write(tmp_path / "a.json", "\ufeff" + json.dumps(ROWS))) == [
        ("a.json[0]", ROWS[0]),
        ("a.json[1]", ROWS[1]),
    ]
    assert read(write(tmp_path / "b.json", LINES)) == [("b.json:1", ROWS[0]), ("b.json:2", ROWS[1])]


def test_gzip(tmp_path):
    assert read(write(tmp_path / "a.jsonl.gz", gzip.compress(LINES.encode()))) == [
        ("a.jsonl.gz:1", ROWS[0]),
        ("a.jsonl.gz:2", ROWS[1]),
    ]


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="the zstd extra is not installed")
    two_frames = b"".join(zstandard.compress(line.encode()) for line in LINES.splitlines(keepends=True))
    for name, content in (("a", zstandard.compress(LINES.encode())), ("b", two_frames)):
        path = write(tmp_path / f"{name}.jsonl.zst", content)
        assert [record for _, record in read(path)] == ROWS, name


def test_cut_compressed_files_are_named(tmp_path):
    long = "".join(json.dumps({"n": n}) + "\n" for n in range(5000)).encode()
    place, record = read(write(tmp_path / "a.jsonl.gz", gzip.compress(long)[:-2000]))[-1]
    assert place == "a.jsonl.gz" and isinstance(record, NotARecord) and "cannot be decompressed" in str(record)
    place, record = read(write(tmp_path / "b.jsonl.gz", LINES))[-1]
    assert isinstance(record, NotARecord) and "cannot be decompressed" in str(record)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path, suffix, delimiter, ending):
    """A quoted cell holds the delimiter and a line end; the place is the row's last line."""
    lines = [
        delimiter.join(("query", "n")),
        delimiter.join((f'"a{delimiter}b\nc"', "1")),
        delimiter.join(("d", "2")),
        "",
    ]
    path = write(tmp_path / f"a.{suffix}", "\ufeff" + ending.join(lines))
    assert list(files.records(path, quoted_tsv=True)) == [
        (f"a.{suffix}:3", {"query": f"a{delimiter}b\nc", "n": "1"}),
        (f"a.{suffix}:4", {"query": "d", "n": "2"}),
    ]


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path):
    path = write(tmp_path / "a.csv", f"text\n{'x' * 200_000}\n")
    assert len(read(path)[0][1]["text"]) == 200_000


def test_rows_that_do_not_fit_the_header(tmp_path):
    found = read(write(tmp_path / "a.csv", "a,b\n1\n1,2,3\n1,2\n"))
    assert [(place, str(record)) for place, record in found[:2]] == [
        ("a.csv:2", "1 columns, but the header has 2"),
        ("a.csv:3", "3 columns, but the header has 2"),
    ]
    assert found[2] == ("a.csv:4", {"a": "1", "b": "2"})


def test_an_open_quote_swallows_no_lines(tmp_path):
    """Unquoted files of other programs: a cell that begins with a quote must not eat the lines after it."""
    path = write(tmp_path / "a.tsv", 'a\tb\n"open quote\t1\nx\t2" y\nz"\t"\n')
    assert [record for _, record in read(path)] == [
        {"a": '"open quote', "b": "1"},
        {"a": "x", "b": '2" y'},
        {"a": 'z"', "b": '"'},
    ]
    for found in (list(files.records(path, quoted_tsv=True)), read(write(tmp_path / "a.csv", 'a,b\n"open,1\nx,2\n'))):
        assert isinstance(found[0][1], NotARecord) and "rest of the file was not read" in str(found[0][1])


def test_a_quoted_row_that_does_not_fit_names_the_remedy(tmp_path):
    found = read(write(tmp_path / "a.tsv", 'a\tb\n"two\nlines"\t1\n'))
    assert "quoted_tsv=true" in str(found[0][1])


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_cells_behind_another_mark_are_named(tmp_path, mark):
    """As spreadsheets write them in many countries."""
    path = write(
        tmp_path / "a.csv", mark.join(["query", "positive"]).encode() + b"\n" + mark.join("ab").encode() + b"\n"
    )
    ((place, record),) = read(path)
    assert place == "a.csv:1" and f"separated by {mark!r}; write them with commas" in str(record)


def test_a_column_name_that_stands_twice(tmp_path):
    """The second column would replace the first without a word."""
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        path = write(tmp_path / f"a.{suffix}", delimiter.join("aba") + "\n" + delimiter.join("123") + "\n")
        ((_, record),) = read(path)
        assert (
            isinstance(record, NotARecord) and str(record) == "the header has a more than once; the file was not read"
        )


def test_a_zstd_file_cut_anywhere_in_its_frame(tmp_path):
    """Every prefix of the file is damaged; a file of several frames is whole."""
    zstandard = pytest.importorskip("zstandard")
    lines = b"".join(b'{"a": %d}\n' % number for number in range(300))
    whole = zstandard.ZstdCompressor().compress(lines)
    for size in range(1, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.jsonl.zst").write_bytes(whole[:size])
        assert isinstance(read(tmp_path / "cut.jsonl.zst")[-1][1], NotARecord), size
    (tmp_path / "two.jsonl.zst").write_bytes(whole + whole)
    assert len(read(tmp_path / "two.jsonl.zst")) == 600


def test_an_object_with_its_records_under_data(tmp_path):
    """NeMo's files, on one line or several."""
    content = {"corpus": [{"path": "c"}], "data": [{"a": 1}, 2, {"a": 3}]}
    for indent in (None, 1):
        path = write(tmp_path / f"a{indent}.json", json.dumps(content, indent=indent))
        found = read(path)
        assert [place for place, _ in found] == [f"{path.name}:data[{n}]" for n in range(3)]
        assert found[0][1] == {"a": 1} and isinstance(found[1][1], NotARecord) and found[2][1] == {"a": 3}
        assert envelope(path) == {"corpus": [{"path": "c"}]}


TRICKY = [
    {"query": 'a "quoted" ] } , text', "n": [1, [2, {"b": "\\\\"}], []], "é": "größe\n"},
    {"query": '\\"', "empty": {}, "deep": {"data": [{"data": []}]}, "long": "x" * 500},
    {"query": "]", "n": -1.5e3, "none": None, "yes": True},
]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("under", ["", "data"])
def test_arrays_are_read_block_by_block(tmp_path, monkeypatch, block, indent, under):
    """Strings with brackets, quotes and escapes, wherever a block ends."""
    monkeypatch.setattr(json_scanner, "BLOCK", block)
    content = {"before": {"data": [1]}, "data": TRICKY, "after": "}"} if under else TRICKY
    path = write(tmp_path / "a.json", json.dumps(content, indent=indent, ensure_ascii=indent is None))
    prefix = "a.json:data" if under else "a.json"
    assert read(path) == [(f"{prefix}[{n}]", record) for n, record in enumerate(TRICKY)]
    assert envelope(path) == ({"before": {"data": [1]}, "after": "}"} if under else {})


@pytest.mark.parametrize(
    ("content", "good", "why"),
    [
        ('[{"a": 1}, {"a": 2}', 1, "not closed"),
        ('[{"a": 1}, {"a": "x', 1, "not closed"),
        ('[{"a": 1}, ]', 1, "not JSON"),
        ('[{"a": 1} {"a": 2}]', 0, "not JSON"),
        ('[{"a": 1}, {"a": nul}, {"a": 3}]', 1, "not JSON"),
        ('[{"a": 1}}', 1, "not closed"),
        ('[{"a": 1}] [', 1, "goes on"),
        ("[", 0, "not closed"),
        ("[,]", 0, "not JSON"),
    ],
)
def test_a_damaged_array_gives_what_stands_before_the_damage(tmp_path, content, good, why):
    *found, (place, last) = read(write(tmp_path / "a.json", content))
    assert found == [(f"a.json[{n}]", {"a": n + 1}) for n in range(good)]
    assert isinstance(last, NotARecord) and why in str(last) and "the rest of the file was not read" in str(last)
    assert place == f"a.json[{good}]"


@pytest.mark.parametrize(
    "content", ['{"data": [{"a": 1}]', '{"data": [1] 2}', '{"data": 1, "b" 2}', '{"a": {}, 7}', "{"]
)
def test_an_object_that_is_no_json_is_named(tmp_path, content):
    assert [str(record)[:8] for _, record in read(write(tmp_path / "a.json", content))] == ["not JSON"]


def test_empty_files_and_arrays_hold_no_record(tmp_path):
    assert [
        read(write(tmp_path / "a.json", content)) for content in ("", " \n", "[]", "\ufeff[ \n]", '{"data": []}')
    ] == [[]] * 5


def test_json_lines_whose_first_record_has_data_are_lines(tmp_path):
    rows = [{"query": "q", "data": [1]}, {"query": "r", "data": [2]}]
    path = write(tmp_path / "a.json", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(path) == [("a.json:1", rows[0]), ("a.json:2", rows[1])]


def test_a_large_array_is_never_in_memory(tmp_path):
    """A record is returned before the file is read to its end, and what is behind is dropped."""
    path = write(
        tmp_path / "a.json", "[" + ", ".join(json.dumps({"n": n, "text": "x" * 4000}) for n in range(2500)) + "]"
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in records(path)) == 2500
        assert tracemalloc.get_traced_memory()[1] < 5 << 20  # The file has 10 MB.
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path, suffix):
    content = {"csv": b"a\nok\nf\xfcr\n", "jsonl": b'{"a": 1}\n{"a": 2}\n{"a": "f\xfcr"}\n'}[suffix]
    place, record = read(write(tmp_path / f"a.{suffix}", content))[-1]
    assert place == f"a.{suffix}:3" and isinstance(record, NotARecord)


@pytest.mark.parametrize(
    ("line", "why"),
    [("{", "not JSON"), ("[1]", "not a JSON object but list"), ("3", "not a JSON object but int"), ("NaN", "not JSON")],
)
def test_what_is_no_record_comes_in_its_place(tmp_path, line, why):
    found = read(write(tmp_path / "a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n'))
    assert [place for place, _ in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert isinstance(found[1][1], NotARecord) and why in str(found[1][1])


def test_parquet_and_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(
        [{"query": f"q{n}", "positives": [f"p{n}"], "negatives": None} for n in range(3000)]
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=512)
    with pyarrow.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=512)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        found = read(tmp_path / name)
        assert len(found) == 3000
        assert found[2999] == (f"{name}[2999]", {"query": "q2999", "positives": ["p2999"], "negatives": None}), name
    for name in ("d.parquet", "e.arrow"):
        place, record = read(write(tmp_path / name, LINES))[0]
        assert place == name and isinstance(record, NotARecord) and "not " in str(record)
    whole = (tmp_path / "a.parquet").read_bytes()
    place, record = read(write(tmp_path / "f.parquet", whole[:30] + b"damaged!" + whole[38:]))[0]
    assert place == "f.parquet" and "not Parquet, or damaged: " in str(record) and "\n" not in str(record)


def test_one_record_over_several_lines(tmp_path):
    record = {"query": "q", "positives": ["p"]}
    assert read(write(tmp_path / "a.json", json.dumps(record, indent=1).encode())) == [("a.json[0]", record)]
    assert read(write(tmp_path / "b.json", json.dumps(record).encode())) == [("b.json:1", record)]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("a.jsonl.zst", "zstandard", "zstd"), ("a.parquet", "pyarrow", "parquet"), ("a.arrow", "pyarrow", "parquet")],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name, package, extra):
    asked = []
    monkeypatch.setattr(files, "find_spec", lambda wanted: asked.append(wanted))
    path = write(tmp_path / name, b"")
    with pytest.raises(
        ValueError, match=rf"path: .*{name} needs the package {package}: pip install 'rankpo\[{extra}\]'"
    ):
        find(str(path), "path")
    assert asked == [package]


def test_find_takes_files_folders_globs_and_lists(tmp_path):
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    names = ["a.jsonl", "b.csv", "deep/c.json.gz", "deep/notes.txt", "deep/.hidden/d.jsonl", "deep/e[1].jsonl"]
    for name in names:
        write(tmp_path / name, LINES)

    def found(*paths: str) -> list[str]:
        given = [str(tmp_path / path) for path in paths]
        result = find(given if len(given) > 1 else given[0], "path")
        return [str(path.relative_to(tmp_path)) for path in result]

    assert found("b.csv") == ["b.csv"]
    assert found("") == ["a.jsonl", "b.csv", "deep/c.json.gz", "deep/e[1].jsonl"]
    assert found("*.jsonl") == ["a.jsonl"]
    assert found("**/*.jsonl") == ["a.jsonl", "deep/.hidden/d.jsonl", "deep/e[1].jsonl"]
    assert found("deep/e[1].jsonl") == ["deep/e[1].jsonl"]
    assert found("b.csv", "a.jsonl") == ["b.csv", "a.jsonl"]


def test_find_refuses_what_is_not_there_or_not_known(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes.txt", LINES)
    for path in ("nowhere.jsonl", "empty", "*.csv"):
        with pytest.raises(FileNotFoundError, match=r"x.path: .* does not exist or holds no data file"):
            find(str(tmp_path / path), "x.path")
    with pytest.raises(ValueError, match=r"x.path: .*notes.txt has an unknown suffix; known are .jsonl"):
        find(str(tmp_path / "notes.txt"), "x.path")


def test_the_fingerprint_follows_contents_and_their_order(tmp_path):
    first, second = write(tmp_path / "a.jsonl", "1"), write(tmp_path / "b.jsonl", "2")
    joined = write(tmp_path / "c.jsonl", "12")
    marks = [files.content_fingerprint(given) for given in ([first, second], [second, first], [joined], [first])]
    assert len(set(marks)) == 4
    assert files.content_fingerprint([write(tmp_path / "elsewhere.jsonl", "1")]) == marks[3]
