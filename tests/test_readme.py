"""Every command of README.md runs, and its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rankpo.data.generated.jobs import write_jobs
from tests.documents import Block, blocks, overrides, run_command, tiny
from tests.starts import PATIENCE, ROOT

README = ROOT / "README.md"
MOST_LINES = 150
# run by CI itself, or for minutes by hand (`pytest -m slow`): a reason for each
ELSEWHERE = {
    "./install.sh demo": "trains for minutes",
    "./install.sh test": "runs this very test",
}
CHAT = {"prompt": "What colour has the sky?", "chosen": "It is blue.", "rejected": "It is green, mostly."}


def of_language(language: str) -> list[Block]:
    return [block for block in blocks(README) if block.language == language]


def commands() -> list[str]:
    return [command for block in of_language("bash") for command in block.commands]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the files that the commands name, in which they run one after the other, as a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    write_jobs(folder / "jobs", num_profiles=120, num_posts=8)
    (folder / "train.jsonl").write_bytes((folder / "jobs" / "contrastive.jsonl").read_bytes())
    (folder / "pairs.jsonl").write_bytes((folder / "jobs" / "preferences.jsonl").read_bytes())
    (folder / "jobs" / "test").rename(folder / "beir")
    chat = [{**CHAT, "prompt": f"{CHAT['prompt']} ({number})"} for number in range(8)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chat))
    return folder


def by_accelerate(command: str) -> None:
    """Runs a command as it stands, by accelerate, with a tiny model."""
    words = overrides(command)
    assert words is not None and shlex.split(command)[:2] == ["accelerate", "launch"]
    accelerate = (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    subprocess.run([*accelerate, ROOT / "launch.py", *tiny(words)], env=environment, timeout=PATIENCE, check=True)


def test_every_command_of_the_readme_runs(workplace, monkeypatch):
    """One after the other in one folder, as a reader would; the first of accelerate's by it. Then the lines of Python."""
    monkeypatch.chdir(workplace)
    ran = [command for command in commands() if command not in ELSEWHERE]
    assert len(ran) >= 12
    launched = next(command for command in ran if command.startswith("accelerate launch "))
    for command in ran:
        try:
            by_accelerate(command) if command is launched else run_command(command)
        except Exception as error:
            raise AssertionError(f"README.md: {command}") from error
    for block in of_language("python"):
        code = block.text.replace('model="minilm"', 'model="tiny_bert"')
        exec(compile(code, "README.md", "exec"), {})


def test_the_commands_that_do_not_run_here_are_in_the_readme():
    assert set(ELSEWHERE) <= set(commands())


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < MOST_LINES


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []
