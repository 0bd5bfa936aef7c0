"""Choices of options in the spellings of other systems and of habit, rewritten before Hydra reads the overrides."""

from __future__ import annotations

from collections.abc import Sequence

from rankpo.config.places import CONFIG

NESTED = {"loss.ranking": "loss/ranking"}  # A key whose value may be an option of a group of its own.


def options_of(group: str) -> list[str]:
    """The options of a group; [] for a name that is no group."""
    return sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))


def chosen(overrides: Sequence[str]) -> list[str]:
    """The overrides with `loss.ranking=listnet` as the choice of a group, and `++loss=dpo` as `loss=dpo`.

    HALOs and Ra-DPO put ++ in front of every word; Hydra refuses it in front of a group.
    """
    return [_chosen(item) for item in overrides]


def _chosen(item: str) -> str:
    key, separator, value = item.partition("=")
    if key in NESTED and value in options_of(NESTED[key]):
        return f"{NESTED[key]}={value}"
    bare = key.lstrip("+")
    if separator and bare != key and "." not in bare and set(_listed(value)) & {*options_of(bare), ""}:
        return f"{bare}={value}"
    return item


def _listed(value: str) -> list[str]:
    return value.strip("[]").split(",")
