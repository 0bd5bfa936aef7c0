"""The folder format of the kind `toy`: transformers' files, and the settings in rankpo.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from rankpo.models.saving import FolderFormat
from tests.toy_kind.model import ToyModel


class ToyFolder(FolderFormat[ToyModel]):
    """A folder that transformers loads; the pooling stands in rankpo.json."""

    kind = "toy"
    output = "vectors"

    def card(self, model: ToyModel, description: Mapping[str, Any]) -> str:
        return "# A model of the kind toy\n"

    def difference(self, folder: Path, model: ToyModel) -> float:
        backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        again = ToyModel(backbone, model.inputs, layout="padded").to(model.device)
        sequences = model.inputs.sequences_of(["a text", "another text, which is longer"], "candidate")
        return float((again.encode_sequences(sequences) - model.encode_sequences(sequences)).abs().max())
