"""Ranges of a search, separated from the other overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


NO_RANGE = ("seed", "exp_name", "runs_dir", "cache_dir", "run_dir")


def split(
    overrides: Sequence[Override], params: Mapping[str, str], parse: Callable[[str], Override]
) -> tuple[list[str], dict[str, Override]]:
    """Returns the overrides of all jobs, and the ranges by key. The command line takes precedence over `params`.

    Raises ConfigError if there is no range, or a range of a key that must not have one.
    """
    fixed = [str(item.input_line) for item in overrides if not item.is_sweep_override()]
    fixed = [item for item in fixed if not item.lstrip("+~").startswith(("search=", "search."))]
    ranges = {item.get_key_element(): item for item in overrides if item.is_sweep_override()}
    given = {item.get_key_element() for item in overrides}
    for key, text in params.items():
        item = parse(f"{key}={text}")
        if not item.is_sweep_override():
            raise ConfigError([f"search.params.{key} must be a range such as interval(0.1,5), got {text!r}"])
        if key not in given:
            ranges[key] = item
    if not ranges:
        raise ConfigError(["search=optuna has nothing to search; add a range, such as 'loss.beta=interval(0.1,5)'"])
    if "seed" in ranges:
        raise ConfigError(["seed must not have a range: a search would choose the luckiest one; set search.seed"])
    if strange := [key for key in NO_RANGE if key in ranges]:
        raise ConfigError([f"{strange[0]} must not have a range: it names the folder of the search"])
    return fixed, ranges


def text_of(value: object) -> str:
    """A value as part of an override. Choices are strings already; numbers get few digits, for readable names."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
