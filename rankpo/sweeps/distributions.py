"""Distributions of Optuna for the ranges of a search. This module needs optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def distribution(item: Override) -> BaseDistribution:
    """Converts a range in Hydra's grammar to a distribution of Optuna.

    The end of `range` is exclusive, as in other sweeps. Raises ConfigError for an empty range, or a logarithmic range of
    numbers without a logarithm.
    """
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


def any_of(space: BaseDistribution) -> object:
    """Returns an arbitrary value of a distribution."""
    if isinstance(space, CategoricalDistribution):
        return space.choices[0]
    assert isinstance(space, FloatDistribution | IntDistribution)  # `distribution` makes no other
    return space.low
