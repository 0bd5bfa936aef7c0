"""Settings of a kind of model: the keys of its yaml, stored in its saved folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar, Self

from rankpo.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of all kinds; each kind declares its fields once, in a subclass.

    yaml_keys: names of the yaml's keys where they differ from the fields'.
    """

    yaml_keys: ClassVar[Mapping[str, str]] = {}

    def to_json(self) -> dict[str, object]:
        plain: dict[str, object] = json.loads(json.dumps(asdict(self)))  # JSON has no tuples: they become lists.
        return plain

    def in_words(self) -> str:
        """The settings in words, for one line of the log."""
        changed = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)
            if getattr(self, item.name) != item.default
        ]
        return ", ".join(changed) or "default settings"

    @classmethod
    def from_json(cls, values: Mapping[str, object], place: str = "") -> Self:
        """Settings from `to_json`'s form. place: the file of the values, for messages.

        Raises ValueError for an unknown key.
        """
        known = [item.name for item in fields(cls)]
        if strange := [name for name in values if name not in known]:
            raise ValueError("; ".join(unknown(f"{place or 'saved'} settings", name, known) for name in strange))
        return cls(**values)

    def preferring(
        self, stated: Mapping[str, object], explicit: Collection[str], folder: str
    ) -> tuple[Self, list[str]]:
        """Returns these settings updated by a folder's values, except for keys of the command line, and one line per
        difference.

        explicit: keys under `model` on the command line. folder: the source of the values, for messages.
        """
        changed, lines = {}, []
        for name, value in stated.items():
            own, key = getattr(self, name), self.yaml_keys.get(name, name)
            named = any(item == key or item.startswith(f"{key}.") for item in explicit)
            if own == value or (own == "auto" and not named):
                changed[name] = value
            elif named:
                shown = (f"={own!r}", f" {value!r}") if key == name else (" is used", " the saved one")
                lines.append(f"model.{key}{shown[0]} instead of{shown[1]}, with which {folder} was saved")
            else:
                changed[name] = value
                shown = (f"={value!r}", f" {own!r}") if key == name else ("", "")
                given = f"was saved with {key}{shown[0]}" if key == name else f"was saved with another {key}"
                lines.append(f"{folder} {given}; this value is used instead of the yaml's{shown[1]}")
        return replace(self, **changed), lines
