"""JSON Lines of runs: a cut last line is left out, any other damage is one line with its place."""

from __future__ import annotations

import json

import pytest

from rankpo.errors import StorageError
from rankpo.report.runs import open_runs
from rankpo.storage.json_lines import read_lines
from rankpo.sweeps.folder import last_metrics
from tests.runs import CONTRASTIVE, train

WHOLE = b'{"step": 1, "train/loss": 2.0}\n'


@pytest.mark.parametrize("last", [b"", b'{"step": 2, "tra', b'{"step": 2}', b"{", b"\xff\xfe", b"\n\n"])
def test_the_last_line_may_be_cut(tmp_path, last):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + last)
    records = read_lines(tmp_path / "metrics.jsonl", needed=("step",))
    assert records[0] == {"step": 1, "train/loss": 2.0} and len(records) == (2 if last == b'{"step": 2}' else 1)
    assert last_metrics(tmp_path) == {"train/loss": 2.0}


@pytest.mark.parametrize(
    "line", [b'{"step": 1', b"[1]", b"null", b'{"other": 1}', b"\xff", b"[" * 100_000, b'{"step": "}']
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + line + b"\n" + WHOLE)
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2 is damaged; remove that line$"):
        read_lines(tmp_path / "metrics.jsonl", needed=("step",))


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_a_run_with_such_a_line_stops_in_one_line(tmp_path):
    options = (*CONTRASTIVE, "trainer.max_steps=2", "trainer.save_every=1", f"cache_dir={tmp_path}", "exp_name=run")
    train(*options)
    path = tmp_path / "run" / "metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, first[:9], *rest]) + "\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2 is damaged"):
        open_runs([str(tmp_path / "run")])
    path.write_text("\n".join([first, *rest]) + "\n" + first[:9])
    (run,) = open_runs([str(tmp_path / "run")])
    assert run.steps[0] == json.loads(first)
