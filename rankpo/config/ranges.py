"""Empty ranges of a sweep, detected before it begins, because Hydra would run no job and print no message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser


def empty_ranges(arguments: Iterable[str], params: Mapping[str, object] | None, loader: Any) -> list[str]:
    """A problem for each range without values on the command line or in hydra.sweeper.params.

    loader: Hydra's config loader, which lists the options that a glob can match.
    """

    parser = OverridesParser.create(config_loader=loader)
    problems = []
    texts = [*arguments, *(f"{key}={value}" for key, value in (params or {}).items())]
    for text, item in zip(texts, parser.parse_overrides(texts), strict=True):
        if item.is_discrete_sweep() and next(iter(item.sweep_iterator()), None) is None:
            problems.append(
                f"{text} gives no job: {'no option matches the glob' if 'glob' in text else 'the range is empty'}"
            )
    return problems
