"""The long sieges: two ranks killed at random, disks that fill anywhere, caches and run files damaged at random, judge
servers that are hostile in every call. What must hold: nothing is lost, no damaged file is believed, no trace."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rankpo.config.messages import run_error
from rankpo.tasks.annotate import Unfinished
from tests.cli.test_launch import stopped
from tests.distributed.strategies import ROOT, _launcher
from tests.judges.server import Handler, choice, serving
from tests.judges.test_annotate import files, output, overrides, preferences  # noqa: F401
from tests.runs import CONTRASTIVE, RANKPO, curve, final_weights, train
from tests.test_faults import mounted  # noqa: F401

pytestmark = pytest.mark.slow
KEY = "sk-siege/AbC+1234567890=="
TRAINED = ("optimizer=adamw", "optimizer.lr=1e-3", "trainer.max_tokens=400", "trainer.save_every=1")


# two ranks, killed


def launched(strategy: str, options: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = [*_launcher(strategy, 2), str(ROOT / "launch.py"), *options]
    return subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest(run_dir: Path) -> int:
    """The newest complete checkpoint's update; 0 without one."""
    names = [path.name for path in run_dir.glob("checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in names if "." not in name), default=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_killed_at_random_end_as_if_undisturbed(tmp_path, strategy):
    """Each start is killed with all its processes at a random moment behind a random later checkpoint."""
    options = [*CONTRASTIVE, *TRAINED, "trainer.max_steps=12", f"cache_dir={tmp_path}", "resume=auto"]
    assert launched(strategy, [*options, "exp_name=whole"]).wait(600) == 0
    draw, kills = random.Random(0), 0
    while (target := newest(tmp_path / "killed") + draw.randint(1, 3)) < 12:
        launch = launched(strategy, [*options, "exp_name=killed"])
        while newest(tmp_path / "killed") < target:
            assert launch.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        for process in [*psutil.Process(launch.pid).children(recursive=True), launch]:
            process.kill()
        launch.wait()
        kills += 1
    assert launched(strategy, [*options, "exp_name=killed"]).wait(600) == 0
    assert kills >= 3
    assert_close(curve(tmp_path / "killed"), curve(tmp_path / "whole"), rtol=1e-6, atol=0)
    assert_close(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole"), rtol=1e-6, atol=1e-8)
    assert [path for path in tmp_path.rglob("*") if ".tmp-" in path.name or ".old-" in path.name] == []


# disks


@pytest.mark.parametrize("seed", range(6))
def test_a_disk_that_fills_anywhere_and_then_has_room(tmp_path, mounted, monkeypatch, capsys, seed):  # noqa: F811
    options = (
        *CONTRASTIVE,
        *TRAINED,
        "trainer.max_steps=6",
        "exp_name=run",
        "resume=auto",
        "trainer.keep_checkpoints=6",
    )
    whole = tmp_path / "whole"
    train(*options, f"cache_dir={whole}")
    need = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    folder = mounted(f"size={random.Random(seed).randint(16, need)}k")
    for size in (None, need // 2, need * 4):
        if size is not None:
            subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=False)
        capsys.readouterr()
        code, lines = stopped(monkeypatch, capsys, *options, f"cache_dir={folder}")
        assert code in (0, None) or (code == 1 and "the disk is full" in lines[-1]), lines
    assert code in (0, None), lines
    assert (folder / "run/FINAL/model.safetensors").read_bytes() == (whole / "run/FINAL/model.safetensors").read_bytes()


# damaged files

LIVE = (*RANKPO, *TRAINED, "loss.reference_free=false", "trainer.max_steps=3", "trainer.final=best",
        "eval_datasets=[toy_graded]", "trainer.best_metric=ndcg@20", "trainer.eval_every=1")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("siege")
    train(*LIVE, "exp_name=run", f"cache_dir={folder / 'cache'}")
    shutil.copytree(folder / "cache", folder / "good")
    return folder / "good"


def damages(content: bytes) -> st.SearchStrategy[bytes | str]:
    """Contents in place of the given ones: bits flipped, cut, empty, other values; or a folder or a dangling link."""
    place = st.integers(0, max(0, len(content) - 1))
    flipped = st.builds(
        lambda at, bit: content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :], place, st.integers(0, 7)
    )
    others = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"7",
        b'{"checksum": "0"}',
        b"[" * 3000,
        b"\x00" * 100,
        b"\xff\xfe",
        "folder",
        "link",
    ]
    return st.one_of(flipped, place.map(lambda at: content[:at]), st.sampled_from(others)) if content else st.just(b"x")


def spoil(path: Path, damage: bytes | str) -> None:
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to(path.with_name("nowhere"))
    else:
        assert isinstance(damage, bytes)
        path.write_bytes(damage)


def besieged(whole: Path, data: st.DataObject, chosen: Callable[[Path], list[Path]], *more: str) -> None:
    """One file of a copy of the run and its caches is damaged; the same command then gives the same, or names the file."""
    copy = whole.parent / "cache"  # Where it was made: a run knows its place.
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, symlinks=True)
    paths = sorted(chosen(copy))
    path = data.draw(st.sampled_from(paths), label="file")
    damage = data.draw(damages(path.read_bytes()), label="damage")
    unchanged = damage == path.read_bytes()
    spoil(path, damage)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            train(*LIVE, f"cache_dir={copy}", *more)
    except Exception as error:
        message = run_error(error, {})
        assert not unchanged and message is not None and len(message.splitlines()) == 1, f"{path}: {error!r}"
        assert path.name in message or path.parent.name in message or "damaged" in message, message
        return
    name = next(item.removeprefix("exp_name=") for item in more if item.startswith("exp_name="))
    losses, expected = curve(copy / name), curve(whole / "run")
    if path.name == "metrics.jsonl" and len(losses) < len(expected):  # Lines at its end are gone, which is said.
        assert "are missing; the curve of this run has a gap there" in said.getvalue()
        expected = expected[: len(losses)]
    assert_close(losses, expected, rtol=0, atol=0)
    assert_close(final_weights(copy / name), final_weights(whole / "run"), rtol=0, atol=0)


LONG = settings(max_examples=60, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip


@LONG
@given(data=st.data())
def test_damaged_caches_are_never_believed(whole, data):
    def caches(copy: Path) -> list[Path]:
        return [path for path in copy.rglob("*") if path.is_file() and path.relative_to(copy).parts[0] != "run"
                and not path.name.endswith((".lock", ".holder"))]  # fmt: skip

    besieged(whole, data, caches, "exp_name=again")


@LONG
@given(data=st.data())
def test_damaged_run_files_are_never_believed(whole, data):
    def of_run(copy: Path) -> list[Path]:
        shutil.rmtree(copy / "run" / "FINAL")
        return [path for path in (copy / "run").rglob("*") if path.is_file() and path.suffix != ".lock"
                and path.name != "data_report.json"]  # fmt: skip

    besieged(whole, data, of_run, "exp_name=run", "resume=auto")


# judges


class Hostile(Handler):
    """Answers the first calls of every prompt in hostile ways, by turns, and a later one as a judge does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        key = self.headers["Authorization"].removeprefix("Bearer ")
        draw = random.Random(f"{len(self.server.calls)}{self.server.next_fault(body.hex())}")
        self.server.calls[str(len(self.server.calls))] = 1
        words = {
            "choices": [{"message": {"content": f"Preferred: {choice(request['messages'])}\nConfidence score: 90"}}]
        }
        good = json.dumps(words).encode()
        attack = draw.choice([*ATTACKS, None, None, None])
        if attack is None:
            self.server.count(body.hex())
            return self.answer(200, good, {})
        with suppress(OSError):  # The client is free to go.
            ATTACKS[attack](self, good, key)
        self.close_connection = True
        return None


def drip(handler: Any, good: bytes, key: str) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def raw(content: bytes) -> Callable[[Any, bytes, str], None]:
    return lambda handler, good, key: handler.wfile.write(content)


def answered(
    content: Callable[[bytes, str], bytes], status: int = 200, **headers: str
) -> Callable[[Any, bytes, str], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, good, key: handler.answer(status, content(good, key), named)


def words(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


ATTACKS: dict[str, Callable[[Any, bytes, str], None]] = {
    "slow drip": drip,
    "huge body": answered(lambda good, key: b"x" * (8 << 20)),
    "endless header": raw(b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * (4 << 20)),
    "bad gzip": answered(lambda good, key: b"no gzip", Content_Encoding="gzip"),
    "bomb": answered(lambda good, key: gzip.compress(b"0" * (64 << 20)), Content_Encoding="gzip"),
    "unknown encoding": answered(lambda good, key: good, Content_Encoding="br"),
    "deep JSON": answered(lambda good, key: b"[" * 200_000),
    "deep words": answered(lambda good, key: words("[" * 50_000)),
    "thoughts": answered(lambda good, key: words("<think>" * 30_000)),
    "key": answered(lambda good, key: words(f"{key} is the key")),
    "key in an error": answered(lambda good, key: json.dumps({"error": key}).encode(), status=500),
    "utf-16": answered(lambda good, key: good.decode().encode("utf-16")),
    "surrogate": answered(lambda good, key: rb'{"choices": [{"message": {"content": "\ud800"}}]}'),
    "negative usage": answered(lambda good, key: good[:-1] + b', "usage": {"prompt_tokens": -5}}'),
    "redirect": answered(lambda good, key: b"", status=302, Location="http://127.0.0.1:1/elsewhere"),
    "redirect to itself": answered(lambda good, key: b"", status=307, Location="/v1/chat/completions"),
    "retry never": answered(lambda good, key: b"", status=429, Retry_After="²"),
    "short body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "bad chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "no HTTP": raw(b"\x00\xff\r\n\r\n"),
    "control characters": answered(lambda good, key: words("\x1b[2J\r\nno verdict\x07")),
    "null": answered(lambda good, key: b"null"),
    "wrong types": answered(lambda good, key: b'{"choices": {"0": 7}}'),
}


def test_a_judge_server_that_is_hostile_in_most_calls(files, monkeypatch, capfd):  # noqa: F811
    """Started again and again, the task comes to its end: all pairs judged, the key nowhere, little memory."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    before = psutil.Process().memory_info().rss
    with serving() as running:
        running.RequestHandlerClass = Hostile
        more = ("judge.timeout=1", "judge.max_retries=2", "judge.backoff=0.001", "task.on_disagreement=keep")
        for start in range(40):  # An answer without a verdict was paid: only a larger max_reasks asks again.
            try:
                train(*overrides(files, running.url, *more, f"task.max_reasks={start}"))
                if len(preferences(files)) == 24:
                    break
            except Unfinished:
                continue
    assert len(preferences(files)) == 24
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err and "\x1b" not in said.out + said.err
    for text in (said.out, said.err, *(p.read_text() for p in (files / "cache").rglob("*") if p.is_file())):
        assert KEY not in text and KEY.replace("/", "\\/") not in text
    assert psutil.Process().memory_info().rss - before < 300 << 20
    assert (output(files) / "report.json").exists()
