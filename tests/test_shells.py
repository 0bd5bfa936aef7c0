"""Commands of README, the documentation and `rankpo init` as zsh reads them, which refuses a pattern without a match."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from rankpo.cli.project import write
from rankpo.config.places import ROOT
from tests.documents import blocks, pages

PATTERN = re.compile(r"[\[\]?*]")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\\.")


def commands(*more: Path) -> list[tuple[str, str]]:
    """Each command of every bash block, with its place."""
    found = []
    for page in (ROOT / "README.md", *pages(), *more):
        for block in blocks(page):
            if block.language == "bash":
                found += [(f"{page.name}:{block.line}", command) for command in block.commands]
    return found


def unquoted(command: str) -> str:
    """The command without its quoted parts and without a comment."""
    return QUOTED.sub("", command).split(" #")[0]


def test_no_command_has_a_pattern_outside_of_quotes(tmp_path):
    write(tmp_path / "first")
    given = commands(tmp_path / "first" / "README.md")
    assert len(given) > 150
    assert [f"{place}: {command}" for place, command in given if PATTERN.search(unquoted(command))] == []


@pytest.mark.parametrize(
    ("command", "left"), [("a 'b=[c]' \"d*\" e\\?", "a   e"), ("a b=[c]", "a b=[c]"), ("a # [b]", "a")]
)
def test_quotes_are_read(command, left):
    assert unquoted(command) == left


def test_zsh_runs_the_commands(tmp_path):
    """With functions in place of the programs, in an empty folder: zsh itself expands the words."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh on PATH")
    given = commands()
    programs = {first_word(command) for _, command in given}
    stubs = "".join(f"{name}() {{ :; }}\n" for name in programs if re.fullmatch(r"[\w-]+", name))
    lines = [
        f"( {command} ) || echo {shlex.quote(place)}" for place, command in given if "/" not in first_word(command)
    ]
    script = tmp_path / "all.zsh"
    script.write_text(stubs + "\n".join([*lines, "( rankpo a=[b] ) || echo refused"]) + "\n")
    done = subprocess.run([zsh, "-f", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["refused"], done.stderr


def first_word(command: str) -> str:
    return next(word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_0-9]+=\S*", word))
