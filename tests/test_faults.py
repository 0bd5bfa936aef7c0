"""What can go wrong beside a run: each fault has its one line, and nothing good is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rankpo.data.readers import line_groups
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.folders import damage
from rankpo.tasks.annotate import Unfinished
from tests.cli.test_launch import stopped, write
from tests.judges.server import Server, serving
from tests.judges.test_annotate import QUERIES, check, files, overrides  # noqa: F401 (`files` is a fixture)
from tests.runs import CONTRASTIVE, RANKPO, TINY, curve, train

GOOD = {"query": "q", "passage1": "a", "passage2": "b", "preferred": "A"}
LIVE = (
    *RANKPO,
    "loss.reference_free=false",
    "trainer.max_steps=6",
    "trainer.save_every=2",
    "trainer.keep_checkpoints=3",
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# disks


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A small file system, and how to change its options."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], check=False, capture_output=True)


def test_a_disk_that_fills_while_a_run_saves_leaves_the_last_checkpoint(tmp_path, mounted, monkeypatch, capsys):
    run_dir = mounted("size=2m") / "run"
    options = (*CONTRASTIVE, "trainer.max_steps=60", "trainer.save_every=1", "trainer.keep_checkpoints=60")
    code, lines = stopped(monkeypatch, capsys, *options, f"cache_dir={tmp_path / 'cache'}", f"run_dir={run_dir}")
    assert code == 1 and len(lines) == 1, lines
    assert lines[0].endswith("the disk is full; nothing was replaced, earlier files are intact")
    kept = CheckpointStore(run_dir).list()
    assert len(kept) >= 2
    assert [damage(checkpoint.path) for checkpoint in kept] == [None] * len(kept)
    assert not list(run_dir.glob("checkpoints/*.tmp-*"))


@pytest.mark.parametrize("size", [32, 100])
def test_a_disk_that_fills_while_texts_are_tokenised(mounted, monkeypatch, capsys, size):
    """numpy says how many numbers it has written, and not why they are fewer."""
    folder = mounted(f"size={size}k")
    code, lines = stopped(monkeypatch, capsys, *RANKPO, f"cache_dir={folder}")
    assert code == 1 and len(lines) == 1 and "the disk is full" in lines[0], lines
    assert [path.name for path in (folder / "text_store").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("form", ["flat", "ids"])
def test_a_temporary_folder_that_fills(tmp_path, mounted, monkeypatch, capsys, form):
    """The lines of one label each, and a corpus that records name by id, are kept there."""
    monkeypatch.setattr(tempfile, "tempdir", str(mounted("size=32k")))
    monkeypatch.setattr(line_groups, "IN_MEMORY", 1)
    texts = [f"text {number} {'x' * 100}" for number in range(1000)]
    if form == "flat":
        path = write(tmp_path / "data.jsonl", *[{"query": text, "content": "c", "label": 1} for text in texts])
    else:
        write(tmp_path / "corpus.jsonl", *[{"id": str(number), "text": text} for number, text in enumerate(texts)])
        path = write(tmp_path / "data.jsonl", {"query": "q", "positive_document_ids": ["1"], "query_id": "a"})
    options = (*TINY, "loss=contrastive", "datasets=[jsonl]", f"datasets.jsonl.path={path}", f"cache_dir={tmp_path}")
    code, lines = stopped(monkeypatch, capsys, *options)
    assert code == 1 and len(lines) == 1, lines
    assert lines[0] == f"{tmp_path / 'small'}: the disk is full; set TMPDIR to a folder with more room"


def test_a_disk_that_fills_while_reference_scores_are_kept(tmp_path, mounted, monkeypatch, capsys):
    """safetensors, too, has its own words for it."""
    (tmp_path / "reference").symlink_to(mounted("size=4k"))
    (tmp_path / "small" / "filler").write_bytes(bytes(4096))
    code, lines = stopped(monkeypatch, capsys, *LIVE, f"cache_dir={tmp_path}")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("the disk is full"), lines


def test_a_directory_that_cannot_be_written(tmp_path, mounted, monkeypatch, capsys):
    folder = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    code, lines = stopped(monkeypatch, capsys, *RANKPO, f"cache_dir={tmp_path}", f"run_dir={folder}/run")
    assert code == 1 and len(lines) == 1
    assert str(folder) in lines[0] and "Read-only file system" in lines[0]


# files of the data and of the cache


def test_a_line_that_is_not_json(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "pairs.jsonl", *[GOOD] * 9)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:-9], *lines[5:]]))
    options = (*TINY, "loss=rankpo", "datasets=[rankpo]", f"datasets.rankpo.path={path}", f"cache_dir={tmp_path}")
    code, said = stopped(monkeypatch, capsys, *options)
    assert code != 0 and len(said) == 1
    assert "pairs.jsonl:5" in said[0] and "not JSON" in said[0]
    assert not list((tmp_path / "text_store").glob("*/"))


@pytest.mark.parametrize("spoil", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["tokens.npy", "candidates.npy"])
def test_a_text_store_that_was_damaged_is_built_again(tmp_path, capsys, name, spoil):
    options = (*CONTRASTIVE, "trainer.max_steps=2", f"cache_dir={tmp_path}")
    train(*options, "exp_name=before")
    (folder,) = (tmp_path / "text_store").glob("*/")
    before = content(folder)
    spoil(folder / name)
    train(*options, "exp_name=after")
    said = capsys.readouterr().err
    assert f"{folder} is damaged ({name} " in said and "is built again" in said
    assert content(folder) == before
    assert curve(tmp_path / "after") == curve(tmp_path / "before")


@pytest.mark.parametrize("spoil", [cut, flip])
def test_reference_scores_that_were_damaged_are_computed_again(tmp_path, capsys, spoil):
    train(*LIVE, "exp_name=before", f"cache_dir={tmp_path}")
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    before = load_file(path)["scores"]
    spoil(path)
    train(*LIVE, "exp_name=after", f"cache_dir={tmp_path}")
    assert f"{path} is damaged" in capsys.readouterr().err
    assert load_file(path)["scores"].tolist() == before.tolist()
    assert curve(tmp_path / "after") == curve(tmp_path / "before")


def test_embeddings_that_were_cut_are_named(tmp_path):
    from rankpo.retrieval.embeddings import Embeddings
    from rankpo.retrieval.shards import EncodingError
    from tests.retrieval.test_embeddings import stored

    stored(tmp_path, np.eye(5, dtype=np.float32))
    cut(tmp_path / "shard-00000.npy")
    with pytest.raises(EncodingError, match=r"shard-00000\.npy is damaged \(it has \d+ bytes instead of \d+\)"):
        Embeddings(tmp_path).rows(np.arange(5))


# files of the run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that is finished, and beside it a copy of how it was."""
    folder = tmp_path_factory.mktemp("faults")
    train(*LIVE, "exp_name=run", f"cache_dir={folder}")
    shutil.copytree(folder / "run", folder / "good")
    return folder


@pytest.fixture
def unfinished(finished) -> Path:
    """The run, its FINAL not yet written."""
    shutil.rmtree(finished / "run")
    shutil.copytree(finished / "good", finished / "run")
    shutil.rmtree(finished / "run" / "FINAL")
    return finished / "run"


def continued(run: Path) -> None:
    """Asserts that the run, continued, ends as it did before."""
    train(*LIVE, "exp_name=run", f"cache_dir={run.parent}", "resume=auto")
    good = run.parent / "good"
    assert content(run / "FINAL") == content(good / "FINAL")
    assert curve(run) == curve(good)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in good.iterdir())


@pytest.mark.parametrize(
    ("spoil", "name", "why"),
    [
        (cut, "weights.safetensors", "bytes instead of"),
        (flip, "optimizer.safetensors", "has another content than was written"),
        (flip, "state.json", "has another content than was written"),
        (Path.unlink, "random.safetensors", "random.safetensors is missing"),
        (Path.unlink, "manifest.json", "manifest.json is missing"),
        (cut, "manifest.json", "manifest.json is not a list of files"),
    ],
)
def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(unfinished, capsys, spoil, name, why):
    spoil(unfinished / "checkpoints" / "step-6" / name)
    continued(unfinished)
    said = capsys.readouterr().err
    assert f"step-6 is damaged ({name}" in said and why in said
    assert f"continuing from {unfinished / 'checkpoints' / 'step-4'}" in said


def test_without_a_sound_checkpoint_a_run_begins_again(unfinished, capsys):
    for step in (2, 4, 6):
        cut(unfinished / "checkpoints" / f"step-{step}" / "weights.safetensors")
    continued(unfinished)
    assert capsys.readouterr().err.count("is damaged") == 3


def test_a_final_that_was_half_written_is_written_again(unfinished):
    half = unfinished / "FINAL.tmp-12345"
    shutil.copytree(unfinished.parent / "good" / "FINAL", half)
    cut(half / "model.safetensors")
    continued(unfinished)


def test_a_final_that_was_moved_aside_comes_back(unfinished, capsys):
    """Killed between the two renames of overwriting: what stood there before is the finished run."""
    shutil.copytree(unfinished.parent / "good" / "FINAL", unfinished / "FINAL.old-12345")
    continued(unfinished)
    assert "is already finished; its FINAL is unchanged" in capsys.readouterr().err


# servers


def test_a_judge_server_that_is_lost(files):  # noqa: F811
    """What it has answered is not asked again; the rest is named, and asked by the same command."""
    retries = ("judge.max_retries=1", "judge.concurrency=1")

    def leave(server: Server) -> None:
        while sum(server.answered.values()) < 7:
            time.sleep(0.002)
        server.shutdown()
        server.server_close()

    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=leave, args=(server,), daemon=True).start()
    with pytest.raises(
        Unfinished, match=f"consecutive pairs had no answer, the last because of: connection to {server.url}"
    ):
        train(*overrides(files, server.url, *retries))
    failed = (files / "cache" / "a" / "annotate" / "failed.jsonl").read_text()
    assert f"connection to {server.url}" in json.loads(failed.splitlines()[0])["error"]
    first = sum(server.answered.values())
    with serving() as second:
        train(*overrides(files, second.url, *retries))
        check([json.loads(line) for line in (files / "cache/a/annotate/preferences.jsonl").read_text().splitlines()])
        # an answer that was on its way when the server went is paid for again
        assert QUERIES * 4 * 2 <= first + sum(second.answered.values()) <= QUERIES * 4 * 2 + 1
