"""Checkpoints are there whole or not at all; a run directory is one run's."""

import errno
import json
import os
import subprocess
import sys

import pytest

from rankpo.errors import StorageError
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.runs.folder import claim, differences, enter_run_dir, start_again
from rankpo.storage import folders
from rankpo.storage.folders import damage, written_whole

CONFIG = {
    "task": {},
    "loss": {},
    "run_dir": "run",
    "seed": 1,
    "trainer": {"batch_size": 4, "max_tokens": 100, "betas": [0.9, 0.99]},
    "resume": None,
}


def save(store, step, text="weights"):
    return store.save(step, lambda folder: (folder / "weights").write_text(f"{text} {step}"), {"step": step})


def numbers(store):
    return [item.step for item in store.list()]


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (20, 3, 100):  # by number, not by name
        save(store, step)
    assert numbers(store) == [3, 20, 100]
    newest = store.newest_valid(pytest.fail)
    assert newest.state == {"step": 100}
    assert (newest.path / "weights").read_text() == "weights 100"
    assert sorted(path.name for path in newest.path.iterdir()) == ["manifest.json", "state.json", "weights"]


def test_folders_with_other_names_are_no_checkpoints(tmp_path):
    """They are neither read nor removed."""
    store = CheckpointStore(tmp_path)
    save(store, 3)
    strange = ["step-²", "step-٣", "step-007", "step-", "step--1", "step-4 (copy)", "step-" + "9" * 200]
    for name in strange:
        (store.folder / name).mkdir()
    (store.folder / "step-9").write_text("a file")
    assert numbers(store) == [3]
    save(store, 5)
    store.keep(5, 1)
    assert {path.name for path in store.folder.iterdir()} == {*strange, "step-9", "step-5"}


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "another content"),
        (lambda path: path.write_text("weigh"), "5 bytes instead of 9"),
        (lambda path: path.unlink(), "weights is missing"),
        (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), "manifest.json is not a list of files"),
    ],
)
def test_a_damaged_newest_gives_the_one_before_with_a_message(tmp_path, spoil, fault):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    newest = save(store, 2)
    spoil(newest.path / "weights")
    said = []
    assert store.newest_valid(said.append).step == 1
    (message,) = said
    assert fault in message and "step-2 is damaged" in message and "the one before" in message


def test_no_valid_checkpoint_is_none(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.newest_valid(pytest.fail) is None
    (save(store, 1).path / "weights").unlink()
    assert store.newest_valid(lambda message: None) is None


def test_a_failing_write_leaves_the_old_one_and_no_rest(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, "old")

    def fail(folder):
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(1, fail, {})
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]
    assert (store.folder / "step-1" / "weights").read_text() == "old 1"


def test_a_full_disk_says_so(tmp_path):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="the disk is full; nothing was replaced"):
        CheckpointStore(tmp_path).save(1, full, {})


def test_being_killed_while_the_folders_change_places_loses_nothing(tmp_path, monkeypatch):
    """Between the two renames there is no step-1: the next writer or run puts the old one back."""
    store = CheckpointStore(tmp_path)
    save(store, 1, "old")
    rename = type(tmp_path).rename

    def die(path, target):
        if ".tmp-" in path.name:
            os._exit(9)
        return rename(path, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(type(tmp_path), "rename", die)
        save(store, 1, "new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert not (store.folder / "step-1").exists()
    store.clean()
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]
    assert (store.folder / "step-1" / "weights").read_text() == "old 1"
    assert damage(store.folder / "step-1") is None


def test_files_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    fsync, rename = folders.sync, type(tmp_path).rename
    monkeypatch.setattr(folders, "sync", lambda path: (order.append(path.name), fsync(path)))
    monkeypatch.setattr(type(tmp_path), "rename", lambda a, b: (order.append("renamed"), rename(a, b))[1])
    with written_whole(tmp_path / "FINAL") as folder:
        (folder / "weights").write_text("w")
    place = order.index("renamed")
    assert {"weights", "manifest.json"} <= set(order[:place])
    assert order[place + 1] == tmp_path.name


def test_retention(tmp_path):
    """The newest two, and whatever is asked for besides."""
    store = CheckpointStore(tmp_path)
    for step in range(1, 7):
        save(store, step)
        store.keep(step, 2, {3})
    assert numbers(store) == [3, 5, 6]


def test_a_damaged_future_does_not_push_out_the_present(tmp_path):
    """step-6 was damaged, the run went back to 4 and saves 5, keeping one: that must be 5."""
    store = CheckpointStore(tmp_path)
    for step in (4, 6):
        save(store, step)
    save(store, 5)
    store.keep(5, 1, {6})
    assert numbers(store) == [5]


def test_two_runs_cannot_hold_one_directory(tmp_path):
    program = (
        "import sys; from pathlib import Path; from rankpo.runs.folder import claim; from rankpo.errors import StorageError\n"
        "try:\n  with claim(Path(sys.argv[1])): pass\nexcept StorageError as error: print(error)\nelse: print('free')"
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
        ).stdout

    with claim(tmp_path):
        assert f"{tmp_path} is in use by process {os.getpid()}; choose another exp_name" in other()
    assert other() == "free\n"


def begin(folder, **changes):
    """A run that has begun: its config and its first line of metrics."""
    enter_run_dir(folder, {**CONFIG, **changes}, overwrite=False, resume=None)
    (folder / "metrics.jsonl").write_text("{}\n")


def test_a_finished_run_is_not_overwritten(tmp_path):
    begin(tmp_path)
    with written_whole(tmp_path / "FINAL") as folder:
        (folder / "weights").write_text("x")
    with pytest.raises(StorageError, match="holds a finished run; set overwrite=true or another exp_name"):
        enter_run_dir(tmp_path, CONFIG, overwrite=False, resume=None)
    assert (tmp_path / "FINAL").exists()
    assert enter_run_dir(tmp_path, CONFIG, overwrite=False, resume="auto") is False  # nothing is left to do
    again = {**CONFIG, "seed": 2}
    assert enter_run_dir(tmp_path, again, overwrite=True, resume=None) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FINAL", "config.json", "metrics.jsonl"]
    start_again(tmp_path, again)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2


def test_an_unfinished_run_is_continued_only_with_its_own_config(tmp_path):
    begin(tmp_path)
    with pytest.raises(StorageError, match="holds an unfinished run; set resume=auto"):
        enter_run_dir(tmp_path, CONFIG, overwrite=False, resume=None)
    trainer = {"batch_size": 8, "max_tokens": 900, "save_every": 5, "keep_checkpoints": 9}
    changed = {"seed": 1, "trainer": trainer, "resume": "auto", "loss": {"beta": 2.0}}
    with pytest.raises(StorageError) as caught:
        enter_run_dir(tmp_path, changed, overwrite=False, resume="auto")
    for part in ("loss.beta: None -> 2.0", "trainer.batch_size: 4 -> 8", "trainer.betas: [0.9, 0.99] -> None"):
        assert part in str(caught.value)
    assert not any(name in str(caught.value) for name in ("max_tokens", "save_every", "keep_checkpoints", "resume:"))
    assert "restore these values to continue it" in str(caught.value)
    assert enter_run_dir(tmp_path, {**CONFIG, "resume": "auto"}, overwrite=False, resume="auto") is True


def test_a_run_that_stopped_before_its_first_line_is_no_run(tmp_path):
    """A bad record, say: mended, the same command must work, though datasets.path is another now."""
    enter_run_dir(tmp_path, CONFIG, overwrite=False, resume=None)
    assert enter_run_dir(tmp_path, {**CONFIG, "data": "mended"}, overwrite=False, resume=None) is True
    assert json.loads((tmp_path / "config.json").read_text())["data"] == "mended"


def test_differences_look_through_tuples_and_none():
    assert differences({"a": (1, 2), "b": None}, {"a": [1, 2], "b": None}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b: 1 -> 2"]
    assert differences({"tracker": {"name": None}}, {"tracker": {"name": "wandb"}}) == []
    assert differences({"trackers": 1}, {"trackers": 2}) == ["trackers: 1 -> 2"]
