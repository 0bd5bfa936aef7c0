"""SearchSettings: the keys of search=optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """config/search/optuna.yaml; metric and direction may be lists of equal length. Raises ValueError."""

    metric: str | Sequence[str] | None
    direction: str | Sequence[str] = "maximize"
    num_trials: int = 20
    params: Mapping[str, str] = field(default_factory=dict)
    sampler: str = "tpe"
    startup_trials: int = 10
    seed: int = 42
    pruning: str = "none"
    pruning_trials: int = 5
    pruning_steps: int = 0
    storage: str = "search.journal"

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("metric is not set; set search.metric or trainer.best_metric, such as jobs_dev/ndcg@20")
        for name, allowed in (("sampler", ("tpe", "random")), ("pruning", ("none", "median"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in (("num_trials", 1), ("startup_trials", 1), ("pruning_trials", 1), ("pruning_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if strange := [direction for direction in self.directions if direction not in ("maximize", "minimize")]:
            raise ValueError(f"direction must be maximize or minimize, got {strange[0]!r}")
        if len(self.directions) != len(self.metrics):
            raise ValueError(f"direction must have one value for each of {', '.join(self.metrics)}")
        if self.pruning != "none" and len(self.metrics) > 1:
            raise ValueError("pruning=median needs one metric; set search.pruning=none")

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or ())

    @property
    def directions(self) -> list[str]:
        return [self.direction] if isinstance(self.direction, str) else list(self.direction)
