"""HybridFolder: a transformers folder plus the linear layers in files with FlagEmbedding's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from rankpo.models.hybrid.layers import read_layers, write_layers
from rankpo.models.hybrid.model import HybridModel
from rankpo.models.inputs import TextInputs
from rankpo.models.loading import headless
from rankpo.models.model_card import card_of, origin
from rankpo.models.saved import read_json
from rankpo.models.saving import FolderFormat
from rankpo.storage.printable import markdown

SAMPLE_TEXTS = ["a short text", "a text that is a little longer than the other one, and has more words", "word"]
USE = """## Use

```python
import rankpo
model = rankpo.load("FOLDER")
passages = model.encode_parts(["a passage"])  # passages.dense, passages.sparse, passages.colbert
```"""


class HybridFolder(FolderFormat[HybridModel]):
    """The folder format of kind hybrid."""

    kind = "hybrid"
    output = "vectors and token weights"
    tolerance = 1e-5

    def beside(self, folder: Path, model: HybridModel) -> None:
        write_layers(model, folder)

    def beside_adapters(self, folder: Path, model: HybridModel) -> None:
        write_layers(model, folder)

    def card(self, model: HybridModel, description: Mapping[str, object]) -> str:
        settings = model.settings
        about = [
            f"A hybrid retriever (BGE-M3) {origin(description)}.",
            f"{settings.in_words()}.",
            "",
            USE,
            "",
            f"Query prompt: {markdown(json.dumps(settings.query_prompt))}. "
            f"Passage prompt: {markdown(json.dumps(settings.passage_prompt))}.",
        ]
        return card_of(
            description, "transformers", "feature-extraction", ["rankpo", "hybrid", "sparse", "colbert"], about
        )

    def allowed(self, model: HybridModel) -> float:
        """Returns a larger tolerance for flash attention, which has no float32."""
        return 2e-2 if _flash(model) else self.tolerance

    def difference(self, folder: Path, model: HybridModel) -> float:
        """Compares with the folder as transformers loads it, on padded sample texts; relative if weights exceed 1."""
        family = headless(read_json(folder / "config.json"))
        backbone = family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        plain = HybridModel(backbone, TextInputs(model.tokenizer, model.settings), layout="padded").eval()
        read_layers(plain, folder, new_layers=False)
        plain.to(model.device)
        sequences = plain.inputs.sequences_of(SAMPLE_TEXTS, "candidate")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_flash(model)):
            theirs, ours = plain.encode_sequences(sequences), model.encode_sequences(sequences)
        values = ours[:, :-1]
        return float((theirs - ours).abs().max()) / max(1.0, float(values.abs().max()))


def _flash(model: HybridModel) -> bool:
    return str(model.base.config._attn_implementation).startswith("flash")
