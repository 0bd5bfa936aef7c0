"""Ranges of a sweep that hold no value, found before the sweep begins: Hydra would run no job and say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser


def empty_ranges(arguments: Iterable[str], params: Mapping[str, object] | None, loader: Any) -> list[str]:
    """A problem for each range of the command line or of hydra.sweeper.params without a value.

    loader: Hydra's config loader, which lists the options that a glob chooses among.
    """

    parser = OverridesParser.create(config_loader=loader)
    problems = []
    texts = [*arguments, *(f"{key}={value}" for key, value in (params or {}).items())]
    for text, item in zip(texts, parser.parse_overrides(texts), strict=True):
        if item.is_discrete_sweep() and next(iter(item.sweep_iterator()), None) is None:
            problems.append(f"{text} gives no job: {'no option fits the glob' if 'glob' in text else 'it is empty'}")
    return problems
