"""Settings of a kind of model: the keys that its yaml has and its saved folder keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from rankpo.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of all kinds; each kind declares its fields once, in a subclass.

    yaml_keys: names of the yaml's keys where they differ from the fields'.
    """

    yaml_keys: ClassVar[Mapping[str, str]] = {}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], place: str = "") -> Self:
        """Settings from `to_json`'s form. place: the file that they stand in, for messages.

        Raises ValueError for a key that this version does not know.
        """
        known = [item.name for item in fields(cls)]
        if strange := [name for name in values if name not in known]:
            raise ValueError("; ".join(unknown(f"{place or 'saved'} settings", name, known) for name in strange))
        return cls(**values)

    def preferred(self, given: Self, explicit: Collection[str], folder: str) -> tuple[Self, list[str]]:
        """These saved settings, with those of `given` that the command line names; and one line for each difference.

        explicit: keys under `model` that the command line sets. folder: where these settings were saved.
        """
        changed, lines = {}, []
        for item in fields(self):
            old, new = getattr(self, item.name), getattr(given, item.name)
            key = self.yaml_keys.get(item.name, item.name)
            if old == new or (new == "auto" and key not in explicit):
                continue
            shown = (f"={new!r}", f" {old!r}") if key == item.name else (" is used", " the saved one")
            if any(name == key or name.startswith(f"{key}.") for name in explicit):
                changed[item.name] = new
                lines.append(f"model.{key}{shown[0]} instead of{shown[1]}, with which {folder} was saved")
            elif key == item.name:
                lines.append(f"{folder} was saved with {key}={old!r}: that is used, not the yaml's {new!r}")
            else:
                lines.append(f"{folder} was saved with another {key}: that is used, not the yaml's")
        return replace(self, **changed), lines
