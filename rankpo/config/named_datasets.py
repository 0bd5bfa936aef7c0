"""Overrides of datasets with user-defined names, and of keys that every dataset has, in Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPS = ("datasets", "eval_datasets", "replay_datasets")
OWN_KEYS = ("loss", "negatives", "num_negatives", "temperature", "query_prompt", "passage_prompt", "by_file")
LIST = re.compile(r"\[([^\[\]{}'\"]*)\]")  # A plain list of options.


def named(overrides: Sequence[str]) -> list[str]:
    """Rewrites `datasets=[a:jsonl,b:jsonl,rankpo]` to `datasets=[rankpo]` and two new nodes.

    The keys of new nodes, and keys that no yaml of the group has, get the prefix `++`.
    """
    made: list[str] = []
    new: set[str] = set()
    for item in overrides:
        key, equals, value = item.partition("=")
        listed = LIST.fullmatch(value) if key in GROUPS and equals else None
        if listed is None or ":" not in value:
            made.append(item)
            continue
        items = [part.strip() for part in listed[1].split(",") if part.strip()]
        made.append(f"{key}=[{','.join(part for part in items if ':' not in part)}]")
        for part in items:
            name, colon, option = part.partition(":")
            if colon:
                made.append(f"++{key}.{name.strip()}.like={option.strip()}")
                new.add(f"{key}.{name.strip()}")
    return [_added(item, new) for item in made]


def _added(item: str, new: set[str]) -> str:
    """The override with `++` if its key may be missing in the config."""
    key = item.partition("=")[0]
    parts = key.split(".")
    if len(parts) < 3 or parts[0] not in GROUPS:
        return item
    return f"++{item}" if ".".join(parts[:2]) in new or parts[2] in OWN_KEYS else item
