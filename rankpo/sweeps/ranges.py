"""The ranges of a search: which overrides have one, and Optuna's form of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution


NO_RANGE = ("seed", "exp_name", "runs_dir", "cache_dir", "run_dir")


def split(
    overrides: Sequence[Override], params: Mapping[str, str], parse: Callable[[str], Override]
) -> tuple[list[str], dict[str, Override]]:
    """The overrides that all jobs have, and those with a range by key; the command line goes before `params`.

    Raises ConfigError where nothing has a range, or what must not have one.
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


def distribution(item: Override) -> BaseDistribution:
    """Optuna's form of a range as Hydra writes it.

    `range` is without its end, as in any other sweep. Raises ConfigError for one that is empty or has no logarithm.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = item.value()
    try:
        if item.is_interval_sweep():
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)
        if item.is_range_sweep() and not value.shuffle:
            steps = list(value.range())
            kind = IntDistribution if isinstance(steps[0], int) else FloatDistribution
            return kind(steps[0], steps[-1], step=type(steps[0])(value.step))
        return CategoricalDistribution(list(dict.fromkeys(item.sweep_string_iterator())))
    except (ValueError, IndexError) as error:
        raise ConfigError([f"{item.input_line}: {error}"]) from error


def text_of(value: object) -> str:
    """A value as part of an override: choices are that already, numbers have the digits that a name should have."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def any_of(space: BaseDistribution) -> object:
    """Some value of a distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return space.choices[0]
    assert isinstance(space, FloatDistribution | IntDistribution)  # `distribution` makes no other
    return space.low
