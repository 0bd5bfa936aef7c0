"""LateInteractionFolder: a folder that sentence-transformers' MultiVectorEncoder loads with equal scores."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rankpo.models.late_interaction.inputs import LateInteractionInputs
from rankpo.models.late_interaction.model import LateInteractionModel
from rankpo.models.late_interaction.reading import TOKENS, read_projection
from rankpo.models.late_interaction.settings import LateInteractionSettings
from rankpo.models.layers import their_keys, write_weights
from rankpo.models.loading import headless
from rankpo.models.model_card import card_of, origin
from rankpo.models.saved import read_json
from rankpo.models.saving import FolderFormat, sentence_transformers_config, write_json
from rankpo.storage.printable import markdown

MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
CLASSES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "MultiVectorMask": MASK,
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
USE = """## Use

```python
import rankpo
model = rankpo.load("FOLDER")
model.rank("a query", ["a passage", "another"])

from sentence_transformers import MultiVectorEncoder
model = MultiVectorEncoder("FOLDER")
scores = model.similarity(model.encode_query(["a query"]), model.encode_document(["a passage"]))
```"""
SAMPLES = {"query": ["a short text", "word"], "candidate": ["a text, longer than the other one, with (signs)", "x"]}


class LateInteractionFolder(FolderFormat[LateInteractionModel]):
    """The folder format of kind late_interaction."""

    kind = "late_interaction"
    output = "token vectors"

    def tokenizer(self, model: LateInteractionModel) -> PreTrainedTokenizerBase:
        """Adds a pad token, which other libraries need, and pads on the right, where query expansion belongs."""
        chosen: PreTrainedTokenizerBase = copy.deepcopy(model.tokenizer)
        if chosen.pad_token is None:
            chosen.pad_token = chosen.eos_token or chosen.sep_token or chosen.unk_token
        if model.settings.expanded_length:
            chosen.padding_side = "right"
        return chosen

    def beside(self, folder: Path, model: LateInteractionModel) -> None:
        _write_modules(folder, model)

    def beside_adapters(self, folder: Path, model: LateInteractionModel) -> None:
        """sentence-transformers looks for its files beside the adapters."""
        _write_modules(folder, model)

    def card(self, model: LateInteractionModel, description: Mapping[str, object]) -> str:
        settings = model.settings
        about = [
            f"A late-interaction model (ColBERT) {origin(description)}: one vector of {model.dim} dimensions per token, "
            "compared by MaxSim.",
            f"{markdown(settings.in_words())}.",
            "",
            USE,
            "",
            f"Query prompt: {markdown(json.dumps(settings.query_prompt))}. "
            f"Passage prompt: {markdown(json.dumps(settings.passage_prompt))}.",
        ]
        tags = ["rankpo", "sentence-transformers", "multi-vector", "colbert", "late-interaction"]
        return card_of(description, "sentence-transformers", "sentence-similarity", tags, about)

    def allowed(self, model: LateInteractionModel) -> float:
        """Returns a larger tolerance for flash attention, which has no float32."""
        return 2e-2 if _flash(model) else 1e-5

    def difference(self, folder: Path, model: LateInteractionModel) -> float:
        """Compares with the folder as transformers loads it, on padded sample texts of both roles."""
        family = headless(read_json(folder / "config.json"))
        backbone = family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        inputs = LateInteractionInputs(model.tokenizer, model.settings)
        plain = LateInteractionModel(backbone, inputs, layout="padded").eval()
        read_projection(folder, plain.layers)
        plain.to(model.device)
        largest = 0.0
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_flash(model)):
            for role, texts in SAMPLES.items():
                sequences = inputs.sequences_of(texts, role)
                theirs, ours = plain.encode_sequences(sequences), model.encode_sequences(sequences)
                scale = max(1.0, float(ours.abs().max()))
                largest = max(largest, float((theirs - ours).abs().max()) / scale)
        return largest


def _flash(model: LateInteractionModel) -> bool:
    return str(model.base.config._attn_implementation).startswith("flash")


def _write_modules(folder: Path, model: LateInteractionModel) -> None:
    """The modules of sentence-transformers' MultiVectorEncoder with their configurations and weights."""
    settings = model.settings
    place = {"module_input_name": TOKENS, "module_output_name": TOKENS}
    width = int(model.base.config.get_text_config().hidden_size)
    sized = settings.sized(width)[0]
    configs: list[tuple[str, dict[str, object]]] = [("Dense", {**their_keys(keys), **place}) for keys in sized]
    sides = ["document", "query"] if settings.skip_queries else ["document"]
    mask: dict[str, object] = {
        "skiplist_words": list(settings.skip),
        "skiplist_tasks": sides,
        "keep_only_token_ids": None,
    }
    configs.append(("MultiVectorMask", mask))
    if settings.normalize:
        configs.append(("Normalize", dict(place)))
    modules = [{"idx": 0, "name": "0", "path": "", "type": CLASSES["Transformer"]}]
    for number, (name, keys) in enumerate(configs, 1):
        path = f"{number}_{name}"
        (folder / path).mkdir(exist_ok=True)
        write_json(folder / path / "config.json", keys)
        modules.append({"idx": number, "name": str(number), "path": path, "type": CLASSES[name]})
        if name == "Dense":
            write_weights(model.layers[number - 1], folder / path)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", _transformer(settings))
    write_json(folder / "config_sentence_transformers.json", _general(settings))


def _transformer(settings: LateInteractionSettings) -> dict[str, object]:
    keys: dict[str, object] = {
        "max_seq_length": max(settings.query_max_length, settings.passage_max_length),
        "do_lower_case": False,
        "query_length": settings.query_max_length,
        "document_length": settings.passage_max_length,
    }
    if settings.expanded_length:
        keys["query_expansion"] = {
            "strategy": settings.query_expansion,
            "attend": settings.attend_to_expansion,
            "token": settings.expansion_token,
            "length": settings.expanded_length,
        }
    return keys


def _general(settings: LateInteractionSettings) -> dict[str, object]:
    similarity = "meanmaxsim" if settings.normalize_scores else "maxsim"
    return sentence_transformers_config("MultiVectorEncoder", "6.2.0", settings, similarity)
