"""Overrides of datasets that have names of their own, and of keys that every dataset has, as Hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPS = ("datasets", "eval_datasets", "replay_datasets")
OWN_KEYS = ("loss", "negatives", "num_negatives", "temperature", "query_prompt", "passage_prompt", "by_file")
LIST = re.compile(r"\[([^\[\]{}'\"]*)\]")  # A plain list of options.


def named(overrides: Sequence[str]) -> list[str]:
    """The overrides with `datasets=[a:jsonl,b:jsonl,rankpo]` as `datasets=[rankpo]` and two new nodes, and with `++`
    before the keys of those and before keys that no yaml of the group has."""
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
    """An override with `++` where its key may not be there."""
    key = item.partition("=")[0]
    parts = key.split(".")
    if len(parts) < 3 or parts[0] not in GROUPS:
        return item
    return f"++{item}" if ".".join(parts[:2]) in new or parts[2] in OWN_KEYS else item
