"""The origin of a run: fingerprints of all that its result depends on besides its config.

`origin.json` in the run's folder holds the contents of the datasets, the start weights, the tokenizer, the reference
scores and the versions of libraries. A run continues, counts as finished, or is skipped by a sweep only from the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankpo.errors import StorageError
from rankpo.storage.json_files import read_json, write_json

FILE = "origin.json"
VERSIONS = "versions"

Origin = Mapping[str, Mapping[str, str]]  # Part of the run -> name -> fingerprint.


def note(run_dir: Path, origin: Origin) -> None:
    """Writes the origin of a new run."""
    write_json(run_dir / FILE, origin)


def changes(run_dir: Path, origin: Origin) -> list[str]:
    """The differences from the origin of the run in this folder, such as "datasets.rankpo", without versions.

    A run of an earlier version has no origin, and therefore no changes.
    """
    saved = _read(run_dir)
    found = []
    for part in sorted({*saved, *origin} - {VERSIONS}) if saved else ():
        before, now = saved.get(part, {}), origin.get(part, {})
        found += [f"{part}.{name}" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return found


def compare(run_dir: Path, origin: Origin, allowed: bool, say: Callable[[str], None]) -> None:
    """Reports the versions that differ from those of the run in this folder.

    Raises StorageError with all other differences, or reports them if they are `allowed`.
    """
    saved = _read(run_dir)
    if not saved:
        say(f"{run_dir} was begun by an earlier version: its data and weights cannot be compared")
        return
    before, now = saved.get(VERSIONS, {}), origin.get(VERSIONS, {})
    if other := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
        say(f"{run_dir} was begun under other versions: {', '.join(other)}; numbers may differ in their last digits")
    if changed := changes(run_dir, origin):
        what = f"{run_dir} was begun with another content of {', '.join(changed)}"
        if not allowed:
            raise StorageError(
                f"{what}; set overwrite=true to start again, or allow_changes=true to go on with the content of today"
            )
        say(f"warning: {what}; allow_changes=true goes on with the content of today")


def _read(run_dir: Path) -> dict[str, Any]:
    try:
        return read_json(run_dir / FILE, "remove that file, and data and weights are not compared")
    except FileNotFoundError:
        return {}
