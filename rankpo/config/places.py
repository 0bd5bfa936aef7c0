"""Places of files that are not Python: of an installed package inside it, of a checkout at its top level."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "_config").is_dir()  # setup.py puts config/ there in a wheel; a checkout has no such folder
ROOT = PACKAGE.parent  # of a checkout: the folder of launch.py
CONFIG = PACKAGE / "_config" if INSTALLED else ROOT / "config"
ACCELERATE = PACKAGE / "_accelerate_config" if INSTALLED else ROOT / "accelerate_config"
PROGRAM = ["-m", "rankpo"] if INSTALLED else [str(ROOT / "launch.py")]  # what python, torchrun and accelerate start


def accelerate_file(name: str) -> Path | None:
    """The file of a path, or else the one of that name among accelerate_config/; None where neither exists."""
    given = Path(name)
    shipped = ACCELERATE / given.with_suffix(".yaml").name
    if given.is_file():
        return given
    return shipped if given.parent.name in ("", "accelerate_config") and shipped.is_file() else None
