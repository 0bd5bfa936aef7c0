"""LoraSettings: the settings of low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from rankpo.config.value_types import type_problems
from rankpo.errors import unknown


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) through peft."""

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        for problem in type_problems(LoraSettings, self.__dict__, "peft"):
            raise ValueError(problem)
        if self.lora_r < 1:
            raise ValueError(f"peft.lora_r must be >= 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"peft.lora_dropout must be in [0, 1), got {self.lora_dropout}")

    @classmethod
    def of(cls, keys: Mapping[str, object]) -> LoraSettings:
        """Returns the settings in `keys`. Raises ValueError for an unknown key; for a key of peft, it names ours."""
        known = {item.name for item in fields(cls)}
        for name in keys:
            if name not in known:
                ours = f"lora_{name}" if f"lora_{name}" in known else ""
                raise ValueError(unknown("peft", str(name), known, f"; here it is peft.{ours}" if ours else ""))
        return cls(**dict(keys))  # type: ignore[arg-type]  # The constructor checks the types of its values.
