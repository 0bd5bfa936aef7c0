"""Paths of files that are not Python: inside an installed package, or at the top level of a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "_config").is_dir()  # setup.py copies config/ into a wheel under this name.
ROOT = PACKAGE.parent  # The folder of launch.py in a checkout.
CONFIG = PACKAGE / "_config" if INSTALLED else ROOT / "config"
ACCELERATE = PACKAGE / "_accelerate_config" if INSTALLED else ROOT / "accelerate_config"
# The program for python, torchrun and accelerate.
PROGRAM = ["-m", "rankpo"] if INSTALLED else [str(ROOT / "launch.py")]


def accelerate_file(name: str) -> Path | None:
    """The file at a path, or the file of that name in accelerate_config/; None if neither exists."""
    given = Path(name)
    shipped = ACCELERATE / given.with_suffix(".yaml").name
    if given.is_file():
        return given
    return shipped if given.parent.name in ("", "accelerate_config") and shipped.is_file() else None
