"""SparseFolder: a transformers folder that sentence-transformers' SparseEncoder loads with equal vectors."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from rankpo.models.loading import LoadingError
from rankpo.models.model_card import card_of, origin
from rankpo.models.saving import FolderFormat, sentence_transformers_config, write_json
from rankpo.models.sparse.inputs import SparseInputs
from rankpo.models.sparse.loading import WEIGHT, read_query_weights
from rankpo.models.sparse.model import SparseModel
from rankpo.models.sparse.settings import SparseSettings
from rankpo.storage.printable import markdown

MODULES = "sentence_transformers.sparse_encoder.models"  # Releases 5 and 6 of sentence-transformers accept these names.
ROUTER = "sentence_transformers.models.Router"
STATIC = "query_0_SparseStaticEmbedding"
POOLING = "1_SpladePooling"
SAMPLE_TEXTS = ["a short text", "a text that is a little longer than the other one, and has more words", "word"]
USE = """## Use

```python
import rankpo
model = rankpo.load("FOLDER")
model.terms("a passage")  # its active tokens and their weights
scores = model.encode(["a query"], role="query") @ model.encode(["a passage"]).T

from sentence_transformers import SparseEncoder
model = SparseEncoder("FOLDER")
scores = model.similarity(model.encode_query(["a query"]), model.encode_document(["a passage"]))
```"""


class SparseFolder(FolderFormat[SparseModel]):
    """The folder format of kind sparse; differences are relative to the largest weight, if that exceeds 1."""

    kind = "sparse"
    output = "sparse vectors"
    tolerance = 1e-5

    def beside(self, folder: Path, model: SparseModel) -> None:
        _write_sentence_transformers(folder, model)

    def card(self, model: SparseModel, description: Mapping[str, object]) -> str:
        return sparse_card(model.settings, description)

    def allowed(self, model: SparseModel) -> float:
        """Returns a larger tolerance for flash attention, which has no float32."""
        return 2e-2 if _flash(model) else self.tolerance

    def difference(self, folder: Path, model: SparseModel) -> float:
        """Compares with the folder as transformers loads it, on padded sample texts."""
        backbone = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        plain = SparseModel(backbone, SparseInputs(model.tokenizer, model.settings), layout="padded").eval()
        read_query_weights(plain, None, folder)
        plain.to(model.device)
        largest, difference = 1.0, 0.0
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_flash(model)), torch.no_grad():
            for role in ("query", "candidate"):
                sequences = plain.inputs.sequences_of(SAMPLE_TEXTS, role)
                with model.evaluating():
                    ours, theirs = model(sequences), plain(sequences)
                largest = max(largest, float(ours.abs().max()))
                difference = max(difference, float((theirs - ours).abs().max()))
        return difference / largest


def sparse_card(settings: SparseSettings, description: Mapping[str, object]) -> str:
    """The README.md of a sparse model."""
    about = [
        f"A sparse encoder (SPLADE) {origin(description)}.",
        f"{settings.in_words()}.",
        "",
        USE,
        "",
        f"Query prompt: {markdown(json.dumps(settings.query_prompt))}. "
        f"Passage prompt: {markdown(json.dumps(settings.passage_prompt))}.",
    ]
    tags = ["rankpo", "sentence-transformers", "sparse-encoder", "sparse", "splade"]
    return card_of(description, "sentence-transformers", "feature-extraction", tags, about)


def _flash(model: SparseModel) -> bool:
    return str(model.base.config._attn_implementation).startswith("flash")


def _write_sentence_transformers(folder: Path, model: SparseModel) -> None:
    settings = model.settings
    (folder / POOLING).mkdir(exist_ok=True)
    pooling = {
        "pooling_strategy": settings.pooling,
        "activation_function": settings.activation,
        "word_embedding_dimension": model.dim,
    }
    write_json(folder / POOLING / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": settings.passage_max_length, "do_lower_case": False}
    )
    if model.query_weights is None:
        parts = [("", f"{MODULES}.MLMTransformer"), (POOLING, f"{MODULES}.SpladePooling")]
    else:
        parts = [("", ROUTER)]
        _write_router(folder, model)
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(parts)]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", _general(settings))


def _write_router(folder: Path, model: SparseModel) -> None:
    """Writes a Router: token weights for queries, and the model in the folder itself (`.`) for documents."""
    assert model.query_weights is not None
    if (tokens := len(model.tokenizer.get_vocab())) != model.dim:
        raise LoadingError(
            f"the model has {model.dim} entries and the tokenizer {tokens} tokens; sentence-transformers' static "
            "queries need equal numbers: set model.query_encoder=same"
        )
    (folder / STATIC).mkdir(exist_ok=True)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.model_max_length = model.settings.query_max_length
    tokenizer.save_pretrained(folder / STATIC)
    save_file({WEIGHT: model.query_weights.detach().cpu().contiguous()}, folder / STATIC / "model.safetensors")
    write_json(folder / STATIC / "config.json", {"frozen": model.settings.freeze_query_weights})
    router = {
        "types": {
            STATIC: f"{MODULES}.SparseStaticEmbedding",
            ".": f"{MODULES}.MLMTransformer",
            POOLING: f"{MODULES}.SpladePooling",
        },
        "structure": {"query": [STATIC], "document": [".", POOLING]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(folder / "router_config.json", router)


def _general(settings: SparseSettings) -> dict[str, object]:
    more = {} if settings.max_active is None else {"max_active_dims": settings.max_active}
    return sentence_transformers_config("SparseEncoder", "5.0.0", settings, "dot", **more)
