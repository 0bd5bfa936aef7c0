"""Losses of Python callers, a class or an object in place of an option of the group `loss`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig

from rankpo.config import packages
from rankpo.config.moved import current
from rankpo.config.places import CONFIG
from rankpo.errors import ConfigError
from rankpo.losses.base import Loss
from rankpo.losses.in_batch import InBatchLoss

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class OwnLoss:
    """A loss object, and the option of config/loss that provides the kind, the trainer and the dataloader."""

    loss: Loss
    option: str

    def put_into(self, config: DictConfig) -> None:
        """Replaces the loss of the option in the config by a node with the class and the field values of this loss."""
        config.loss = node(self.loss)


def own_loss(given: object) -> OwnLoss | None:
    """The loss of a class or an object; None for the name of an option. Raises ConfigError for other objects."""
    if given is None or isinstance(given, str):
        return None
    loss = given() if isinstance(given, type) and issubclass(given, Loss) else given
    if not isinstance(loss, Loss):
        raise ConfigError(
            [
                f"loss must be an option of config/loss, or a subclass of rankpo.losses.base.Loss or an object of one, got "
                f"{given!r}"
            ]
        )
    return OwnLoss(loss=loss, option=nearest_option(type(loss)))


def nearest_option(found: type[Loss]) -> str:
    """The option whose class is `found` or a base of it, or else an option for losses with the same inputs."""
    by_class = _options()
    for parent in found.__mro__:
        if (name := by_class.get(f"{parent.__module__}.{parent.__qualname__}")) is not None:
            return name
    if issubclass(found, InBatchLoss):
        return "contrastive"
    return "simpo" if found.on_pairs else "softmax"


@cache
def _options() -> Mapping[str, str]:
    """The first option of config/loss for each class, by the dotted name of the class."""
    found: dict[str, str] = {}
    for path in sorted((CONFIG / "loss").glob("*.yaml")):
        node = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("loss") or {}
        if "_target_" in node:
            found.setdefault(current(node["_target_"]), path.stem)
    return found


def node(value: DataclassInstance) -> dict[str, object]:
    """A dataclass object as a config node, with its class and the values of its fields."""
    values = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    return {"_target_": packages.give(type(value)), **values}


def plain(value: object) -> object:
    """The value of a field as a config value. Raises ConfigError for objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return node(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    raise ConfigError(
        [f"a field of a loss must be a string, a number, a list or a mapping, got {type(value).__name__}"]
    )
