"""Commands of `rankpo`: the name of a task followed by keys, and data, env and init, which need no config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rankpo import errors
from rankpo.cli import program
from rankpo.config.flags import HYDRA_FLAGS, VALUE_FLAGS
from rankpo.config.places import CONFIG
from rankpo.data.readers.formats import reader_of
from rankpo.errors import ConfigError

OWN = ("data", "env", "init")
BEIR = ("corpus.jsonl", "queries.jsonl")  # the files that make a folder a BEIR dataset


def main() -> NoReturn:
    """The entry point of `rankpo`, `python -m rankpo`, `accelerate launch -m rankpo` and `torchrun -m rankpo`."""
    program.start(run)


def run() -> int:
    """Runs the command line of this process. Returns the exit code of `program.main`."""
    try:
        words = sys.argv[1:]
        name, rest = split(words)
        if name == "env":
            return _environment(rest)
        if name == "init":
            return _project(rest)
        sys.argv[1:] = translated(words)
    except ConfigError as error:
        program.say(str(error))
        return 2
    return program.main()


def translated(words: Sequence[str]) -> list[str]:
    """Translates the arguments of `rankpo` to those of launch.py. Raises ConfigError.

    `rankpo TASK …` becomes `task=TASK …`, `rankpo data FILE …` becomes task=inspect on the file, and `rankpo` without
    arguments prints the help.
    """
    name, rest = split(words)
    if name is None:
        return rest or ["--help"]
    if name == "data":
        return of_file(rest)
    if other := next((word for word in rest if word.startswith("task=") and word != f"task={name}"), None):
        raise ConfigError(
            [f"rankpo {name} sets task={name}; leave {other} out, or write rankpo {other} without {name}"]
        )
    if name in ("serve", "report"):
        rest = with_runs(name, rest)
    return [f"task={name}", *(word for word in rest if word != f"task={name}")]


def with_runs(name: str, words: Sequence[str]) -> list[str]:
    """`rankpo serve RUN…` and `rankpo report RUN…` as their key task.runs. Raises ConfigError for what is no folder."""
    values = {place + 1 for place, word in enumerate(words) if word in VALUE_FLAGS}
    runs = [
        word
        for place, word in enumerate(words)
        if place not in values and not word.startswith(("-", "~", "+")) and "=" not in word
    ]
    if missing := [run for run in runs if not Path(run).expanduser().is_dir()]:
        raise ConfigError([f"rankpo {name} {missing[0]}: no such run directory"])
    listed = ",".join(escaped(run) for run in runs)
    return [*([f"task.runs=[{listed}]"] if runs else []), *(word for word in words if word not in runs)]


def escaped(path: str) -> str:
    """A path as Hydra's grammar of overrides reads it."""
    doubled = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{doubled}'"


def split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the command, or None if there are only keys and flags, and the other arguments. Raises ConfigError."""
    skipped = False  # Whether the next word is the value of a flag.
    for place, word in enumerate(words):
        if skipped or word.startswith(("-", "~")) or "=" in word:
            skipped = not skipped and word in VALUE_FLAGS
            continue
        before = words[place - 1] if place else ""
        if before.startswith("--") and before.removeprefix("--") not in HYDRA_FLAGS:
            return None, list(words)  # program.main prints the message for `--loss dpo`.
        if word not in (*tasks(), *OWN):
            raise ConfigError([errors.unknown("rankpo", word, (*tasks(), *OWN))])
        return word, [*words[:place], *words[place + 1 :]]
    return None, list(words)


def tasks() -> list[str]:
    """The options of the group task."""
    return sorted(path.stem for path in (CONFIG / "task").glob("*.yaml"))


def of_file(words: Sequence[str]) -> list[str]:
    """The overrides of `rankpo data FILE KEY=VALUE …`. Raises ConfigError."""
    values = {place + 1 for place, word in enumerate(words) if word in VALUE_FLAGS}
    files = [
        word
        for place, word in enumerate(words)
        if place not in values and not word.startswith(("-", "~")) and ("=" not in word or Path(word).exists())
    ]
    if len(files) != 1:
        given = f"got {len(files)}: {', '.join(files)}" if files else "got none"
        raise ConfigError([f"rankpo data takes one file or folder, {given}; write rankpo data FILE KEY=VALUE …"])
    path = Path(files[0]).expanduser()
    if not path.exists():
        raise ConfigError([f"rankpo data {files[0]}: no such file or folder"])
    kind, loss = ("beir", None) if all((path / name).is_file() for name in BEIR) else reader_of(path)
    keys = [word for word in words if word != files[0]]
    defaults = {"loss": loss, "exp_name": "data"}
    added = [f"{key}={value}" for key, value in defaults.items() if value and not _given(key, keys)]
    return ["task=inspect", f"datasets=[{kind}]", f"datasets.{kind}.path={escaped(str(path))}", *added, *keys]


def _given(key: str, words: Sequence[str]) -> bool:
    """Whether a command line sets a key, or keys of a config group."""
    return any(word.startswith((f"{key}=", f"{key}@")) for word in words)


def _environment(words: Sequence[str]) -> int:
    from rankpo.cli.environment import lines

    if words:
        raise ConfigError([f"rankpo env takes nothing more, got {' '.join(words)}"])
    sys.stdout.write("\n".join(lines()) + "\n")
    return 0


def _project(words: Sequence[str]) -> int:
    from rankpo.cli.project import write

    if len(words) > 1 or any(word.startswith("-") or "=" in word for word in words):
        raise ConfigError([f"rankpo init takes one folder at most, got {' '.join(words)}"])
    folder = Path(words[0]) if words else Path("rankpo-project")
    for path in write(folder):
        sys.stdout.write(f"{path} written\n")
    sys.stdout.write(f"{folder / 'README.md'} has four commands to start with; they run in {folder}\n")
    return 0
