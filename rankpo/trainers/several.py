"""SeveralTrainer: a run on several datasets, each update on one of them with the loss of that dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from rankpo.data.loaders.turns import Turns
from rankpo.runs import processes
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.objective import NamedMetrics, Objective, trainer_within
from rankpo.trainers.ppo import TokenPolicyTrainer
from rankpo.trainers.update import Change, Prepared


@dataclass(frozen=True)
class UpdateOfOne:
    """An update of one dataset. number: the index of the dataset. update: the result of its trainer's `prepare`."""

    number: int
    update: Prepared

    @property
    def num_queries(self) -> int:
        return self.update.num_queries

    @property
    def num_tokens(self) -> int:
        return self.update.num_tokens

    @property
    def ids(self) -> tuple[str, ...]:
        return self.update.ids

    def with_inputs(self, change: Change) -> UpdateOfOne:
        return UpdateOfOne(self.number, self.update.with_inputs(change))


@dataclass(frozen=True)
class SeveralLoaders:
    """The loaders of several datasets, with the properties of a single loader that all trainers use."""

    turns: Turns
    seed: int
    num_items: int

    @property
    def updates_per_epoch(self) -> int:
        return self.turns.per_epoch

    @property
    def described(self) -> str:
        return f"{self.num_items:,} items an epoch"

    def position(self, step: int) -> dict[str, int]:
        return {}

    def continue_from(self, position: Mapping[str, int]) -> None:
        """Every update follows from its number alone."""

    def groups(self, step: int) -> NoReturn:
        raise TypeError("the trainer of a dataset prepares its updates; call prepare")


@dataclass(kw_only=True, eq=False)
class SeveralTrainer(BasicTrainer):
    """Trains one model on every dataset with a separate trainer, in the order of `loader.turns`.

    The prefix of a metric is the name of its dataset; `loss` is the mean over all updates. The state of a loss is stored
    in the state of the run as `dataset/number`.
    """

    objectives: Sequence[Objective]
    loader: SeveralLoaders  # type: ignore[assignment]
    parts: list[BasicTrainer] = field(init=False)
    current: int = field(default=0, init=False)  # The index of the dataset of the current update.

    def check(self) -> None:
        self.parts = []
        self.state.loss_state = {}
        for objective in self.objectives:
            try:
                part = trainer_within(self, objective)
            except ValueError as error:
                raise ValueError(f"datasets.{objective.name}: {error}") from error
            if isinstance(part, TokenPolicyTrainer):
                raise ValueError(
                    f"datasets.{objective.name}: {type(part.loss).__name__} cannot be combined with other losses"
                )
            part.running = NamedMetrics(objective.name, self.running)
            part.watch = self.watch
            self.parts.append(part)
            carried = part.state.loss_state
            self.state.loss_state |= {f"{objective.name}/{name}": value for name, value in carried.items()}

    @property
    def losses(self) -> str:
        return ", ".join(f"{type(item.loss).__name__} of {item.name}" for item in self.objectives)

    def largest_whole_group(self) -> int:
        return max(part.largest_whole_group() for part in self.parts)

    def prepare(self, step: int) -> UpdateOfOne:
        number, own_step = self.loader.turns.update(step)
        return UpdateOfOne(number, self.parts[number].prepare(own_step))

    def begin(self, update: Prepared) -> UpdateOfOne:
        assert isinstance(update, UpdateOfOne)
        part = self.parts[update.number]
        part.state.step = self.state.step
        part.state.loss_state = self.loss_state_of(self.objectives[update.number].name)
        part.observed.clear()
        self.current = update.number
        return UpdateOfOne(update.number, part.begin(update.update))

    def backward(self, update: Prepared, last: bool = True) -> None:
        assert isinstance(update, UpdateOfOne)
        part = self.parts[update.number]
        part.values.clear()
        part.backward(update.update, last)
        self.values = list(part.values)

    def loss_state_of(self, name: str) -> dict[str, float]:
        start = f"{name}/"
        return {key[len(start) :]: value for key, value in self.state.loss_state.items() if key.startswith(start)}

    def observed_means(self) -> dict[str, float]:
        return self.parts[self.current].observed_means()

    def next_loss_state(self, num_queries: int) -> None:
        part, name = self.parts[self.current], self.objectives[self.current].name
        if part.state.loss_state:
            means = part.observed.result(processes.sum_over_ranks)
            after = part.loss.next_state(part.state.loss_state, means, num_queries)
            self.state.loss_state |= {f"{name}/{key}": value for key, value in after.items()}
