"""HasScale: the part of `ModelKind` that tells the scale of the scores, by which losses choose their temperature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from rankpo.losses.temperature import COSINES, LOGITS
from rankpo.models.saved import RECORD, read_json
from rankpo.models.settings import Settings


class HasScale:
    """Base of `ModelKind`. A kind overrides both methods where the settings decide the scale."""

    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]]

    def scale(self, settings: Settings) -> str:
        """The scale of the scores of a model with these settings, such as `COSINES`."""
        return COSINES if "vectors" in self.gives else LOGITS

    def early_statement(self, folder: Path) -> Mapping[str, object]:
        """The settings in the JSON files of a folder that `scale` needs, read without heavy libraries.

        Raises ValueError for damaged files.
        """
        record = read_json(folder / RECORD)
        stated: Mapping[str, object] = record.get("settings", {}) if record.get("kind") == self.kind else {}
        return stated
