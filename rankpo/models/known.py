"""Table of the settings of published checkpoints, known.yaml, by hub id and kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("known.yaml")


@cache
def table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Returns a mapping from hub id to kind to the keys of that kind."""

    found: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found


def known_settings(name_or_path: str | None, kind: str) -> Mapping[str, Any]:
    """Returns the settings of a checkpoint as a model of that kind; {} for a checkpoint outside the table."""
    return table().get(name_or_path or "", {}).get(kind, {})
