"""Locks: held once, named, ended with their process, and replaced where a file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rankpo.errors import StorageError
from rankpo.runs.folder import claim
from rankpo.storage import locks
from tests.runs import RANKPO, train

HOLD = (
    "import sys, time; from pathlib import Path; from rankpo.storage.locks import named\n"
    "with named(Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(60)"
)


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def without_flock(request, monkeypatch):
    """A file system that knows no locks."""

    def refused(*arguments):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)


def test_one_at_a_time(tmp_path):
    inside: list[int] = []

    def work() -> None:
        with locks.locked(tmp_path / "lock"):
            inside.append(1)
            assert len(inside) == 1
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with locks.locked(tmp_path / "lock", wait=0), pytest.raises(locks.Busy), locks.locked(tmp_path / "lock", wait=0.1):
        pass


def test_a_killed_holder_is_named_while_it_lives_and_holds_nothing_afterwards(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(locks.Busy, match=f"is held by process {other.pid}$"), locks.named(path):
            pass
        other.kill()
        other.wait()
    with locks.named(path):
        assert locks.holder(path) == f"process {os.getpid()}"
    assert locks.holder(path) == "another process"


@pytest.mark.parametrize("note", ["", "x", "²", "12; rm", "12 elsewhere", "\ud800"])
def test_a_strange_note_of_the_holder_is_not_repeated(tmp_path, note):
    (tmp_path / "lock.holder").write_bytes(note.encode(errors="surrogatepass"))
    shown = {"12 elsewhere": "process 12 on elsewhere"}.get(note, "another process")
    assert locks.holder(tmp_path / "lock") == shown


@pytest.mark.usefixtures("without_flock")
def test_without_locks_of_the_file_system_a_file_is_the_lock(tmp_path):
    with claim(tmp_path), pytest.raises(StorageError, match=f"in use by process {os.getpid()};"), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


@pytest.mark.usefixtures("without_flock")
def test_a_run_without_locks_of_the_file_system(tmp_path):
    train(*RANKPO, "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=run")
    assert (tmp_path / "run" / "FINAL").is_dir()


UNKNOWN_TO_WINDOWS = re.compile(
    r"import (fcntl|pwd|grp|termios)\b|os\.(fork|killpg|setsid|getuid|geteuid|uname|mkfifo|getpgid)\b"
    r"|signal\.(SIGUSR1|SIGUSR2|SIGKILL|SIGALRM|SIGHUP)\b|\.rename\(path\)|/tmp\b"
)
OF_THE_PLATFORM = re.compile(r"(\.read_text\(\)|\.write_text\((?!.*encoding)|\.open\(\"[rwa]\"\))")


@pytest.mark.parametrize("pattern", [UNKNOWN_TO_WINDOWS, OF_THE_PLATFORM], ids=["system", "encoding"])
def test_no_source_of_ours_uses_what_windows_lacks(pattern):
    """Windows' own encoding is not UTF-8, and it lacks fork, half of the signals and renaming over a file."""
    folder = Path(locks.__file__).parents[1]
    sources = [*folder.rglob("*.py"), *(folder.parent / "hydra_plugins").rglob("*.py")]
    assert len(sources) > 100
    lines = [(path.name, line) for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    assert [place for place in lines if pattern.search(place[1])] == []


def test_the_pattern_finds_them():
    for line in ("import fcntl", "os.killpg(0, 9)", "signal.SIGUSR1", "temporary.rename(path)"):
        assert UNKNOWN_TO_WINDOWS.search(line)
    for line in ("path.read_text()", 'path.write_text("x")', 'path.open("w")'):
        assert OF_THE_PLATFORM.search(line)


def test_a_platform_without_sigusr1():
    code = "import signal; del signal.Signals._member_map_['SIGUSR1']; from rankpo.runs import signals; print(signals.SIGNALS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIGTERM" in done.stdout and "SIGUSR1" not in done.stdout
