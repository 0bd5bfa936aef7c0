"""What is printed or written into a card: no control characters, no markup, one line for a name."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
import unicodedata

import pytest

from rankpo.config.messages import run_error
from rankpo.models.embedding.saving import embedding_card as card
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replacing, unwritten
from rankpo.storage.printable import markdown, one_line, printable
from tests.cli.test_launch import stopped
from tests.runs import RANKPO, TINY, train
from tests.starts import ROOT

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\x00\x9b31m\u202eevil\u2028x\ud800\U000e0041"


def is_safe(text: str) -> bool:
    return all(
        character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp", "Cf")
        for character in text
    )


def test_everything_a_terminal_obeys_is_written_out():
    shown = printable(EVIL)
    assert is_safe(shown) and r"\x1b[2J\x1b]0;owned\x07\r\x00\x9b31m\u202eevil\u2028x\ud800\U000e0041" in shown
    assert printable("Grüße 漢字 👩‍💻 \n\t") == "Grüße 漢字 👩‍💻 \n\t"
    assert one_line("a\nb\tc") == r"a\nb\tc"


def test_every_character_of_unicode():
    kept = [chr(number) for number in range(0x110000) if printable(chr(number)) == chr(number)]
    strange = [hex(ord(x)) for x in kept if unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp") and x not in "\n\t"]
    assert strange == [] and len(kept) > 1_000_000


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "[click](http://evil)", "![x](http://evil/p.png)", "[a][b]", "[a]: http://x",
             "```\ncode", "a | b", "\n# Heading", "x\r\n---\n"],
)  # fmt: skip
def test_markdown_has_no_markup(text):
    shown = markdown(text)
    assert not any(mark in shown for mark in ("<", "`", "|", "](", "][", "]:", "\n", "\r"))


def test_a_card_of_hostile_names():
    names = f'<img src=x onerror="alert(1)">\n---\n# {EVIL}'
    description = {
        "exp_name": names,
        "base_model": "org/model\nlicense: mit",
        "loss": names,
        "data": {names: "abc"},
        "metrics_after": {f"set{EVIL}|x\n|y/ndcg@10": 0.5},
    }
    text = card(EmbeddingSettings(query_prompt=f"```\n{names}"), description)
    assert is_safe(text) and "<img" not in text and "license" not in text.split("---")[1]
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    assert next(line for line in text.splitlines() if line.startswith("| set")).count("|") == 4


def test_the_card_of_a_run(tmp_path):
    name = "a <b>bold</b> name\nwith a line"
    train(*RANKPO, "trainer.max_steps=1", f"exp_name='{name}'", f"cache_dir={tmp_path}")
    text = (tmp_path / name / "FINAL" / "README.md").read_text()
    assert r"# a &#60;b>bold&#60;/b> name\nwith a line" in text.splitlines()


def test_the_logger_says_and_tabulates_safely():
    stream = io.StringIO()
    logger = MetricsLogger(stream=stream)
    logger.say(EVIL)
    logger.log("eval", 1, {EVIL: 0.5})
    assert is_safe(stream.getvalue())
    table = logger.table([{f"name\n{EVIL}": f"cell\n{EVIL}"}], EVIL)
    assert is_safe(table) and len(table.splitlines()) == 3


def test_a_file_name_and_a_key_of_a_record_in_an_error(tmp_path, monkeypatch, capsys):
    path = tmp_path / "pairs\x1b[2J\nfinished.jsonl"
    path.write_text(json.dumps({f"query{EVIL[:40]}\nall is well": "q"}) + "\n")
    monkeypatch.setattr("sys.stdin", None)
    options = ("loss=rankpo", "datasets=[rankpo]", f"datasets.rankpo.path='{path}'", f"cache_dir={tmp_path}/c")
    code, lines = stopped(monkeypatch, capsys, *TINY, *options)
    assert code != 0 and len(lines) == 1 and is_safe(lines[0]) and r"\x1b[2J\nfinished.jsonl" in lines[0]


def test_a_nul_in_a_path_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "nul.yaml").write_text('# @package _global_\nexp_name: "a\\0b"\n')
    options = (f"--config-dir={tmp_path / 'conf'}", *RANKPO, "experiment=nul", f"cache_dir={tmp_path}/c")
    code, lines = stopped(monkeypatch, capsys, *options)
    assert code in (1, 2) and len(lines) == 1 and "NUL" in lines[0]


# no room, and a port that is taken


def test_a_limit_of_file_size_is_no_full_disk(tmp_path):
    words = {"OSError": OSError(errno.EFBIG, "File too large"), "safetensors": RuntimeError("I/O error: (os error 27)")}
    for error in words.values():
        with pytest.raises(OSError, match="File too large") as caught, replacing(tmp_path / "x"):
            raise error
        message = run_error(caught.value, {})
        assert message is not None and "ulimit -f" in message and "raise the limit" in message and "full" not in message
    quota = run_error(OSError(errno.EDQUOT, "x"), {})
    assert quota is not None and "quota" in quota and "free some" in quota


def test_numpy_says_nothing_of_the_reason(tmp_path, monkeypatch):
    import resource

    short = OSError("100 requested and 7 written")
    assert unwritten(short, tmp_path) == errno.ENOSPC
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 1000))
    assert unwritten(short, tmp_path) == errno.EFBIG


def test_a_run_under_a_limit_of_file_size(tmp_path):
    program = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2); runpy.run_path('launch.py', run_name='__main__')"
    options = [*RANKPO, "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "ulimit -f" in last and "disk is full" not in done.stderr, done.stderr


def test_a_busy_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        options = [*RANKPO, f"cache_dir={tmp_path}", "exp_name=run"]
        done = subprocess.run(
            [sys.executable, "launch.py", *options],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"rank 0: MASTER_PORT={port} is in use by another program"), (
        done.stderr
    )
