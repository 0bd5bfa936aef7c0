"""FINAL of an embedding model: a transformers folder that sentence-transformers loads too, with the same embeddings.

The older sentence-transformers layout is written: servers mis-pooled the newer one for months, and 6.2 reads both.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedTokenizerBase

from rankpo.errors import ConfigError
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.model_card import card_of, origin
from rankpo.models.saved import RECORD, read_json, settings_of_kind
from rankpo.models.saving import FolderFormat, write_json
from rankpo.storage.printable import markdown

CLASSES = "sentence_transformers.models"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
USE = """## Use

```python
import rankpo
model = rankpo.load("FOLDER")
scores = model.encode(["a query"], role="query") @ model.encode(["a passage"]).T

from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")
scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T

from transformers import AutoModel, AutoTokenizer  # pool and normalise as stated above
backbone, tokenizer = AutoModel.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
```"""
SAMPLE_TEXTS = ["a short text", "a text that is a little longer than the other one, and has more words", "word"]
OTHER_POOLING_KEYS = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)


class EmbeddingFolder(FolderFormat[EmbeddingModel]):
    """The folder format of kind embedding; differences are relative to the largest entry, if that exceeds 1."""

    kind = "embedding"
    output = "embeddings"

    def tokenizer(self, model: EmbeddingModel) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with a pad token: others pad their batches, and refuse a tokenizer that has none.

        Which token it is does not matter, since masks hide it.
        """
        if model.tokenizer.pad_token is not None:
            return model.tokenizer
        padded = copy.deepcopy(model.tokenizer)
        padded.pad_token = padded.eos_token or padded.sep_token or padded.unk_token
        return padded

    def beside(self, folder: Path, model: EmbeddingModel) -> None:
        _write_sentence_transformers(folder, model)

    def beside_adapters(self, folder: Path, model: EmbeddingModel) -> None:
        """sentence-transformers looks for its files beside the adapters."""
        _write_sentence_transformers(folder, model)

    def card(self, model: EmbeddingModel, description: Mapping[str, Any]) -> str:
        return embedding_card(model.settings, description)

    def allowed(self, model: EmbeddingModel) -> float:
        """Flash attention has no float32."""
        return 2e-2 if _flash(model) else 1e-5

    def difference(self, folder: Path, model: EmbeddingModel) -> float:
        """Loaded by plain transformers, sample texts padded together."""
        backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        inputs = EmbeddingInputs(model.tokenizer, model.settings)
        plain = EmbeddingModel(backbone, inputs, layout="padded").to(model.device)
        sequences = inputs.sequences_of(SAMPLE_TEXTS, "candidate")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_flash(model)):
            theirs, ours = plain.encode_sequences(sequences), model.encode_sequences(sequences)
        return float((theirs - ours).abs().max()) / max(1.0, float(ours.abs().max()))


def embedding_card(settings: EmbeddingSettings, description: Mapping[str, Any]) -> str:
    """The README.md of an embedding model."""
    about = [
        f"A bi-encoder {origin(description)}.",
        f"{settings.pooling} pooling, {'normalised' if settings.normalize else 'not normalised'}; "
        f"queries up to {settings.query_max_length} tokens, passages up to {settings.passage_max_length}.",
        "",
        USE,
        "",
        f"Query prompt: {markdown(json.dumps(settings.query_prompt))}. "
        f"Passage prompt: {markdown(json.dumps(settings.passage_prompt))}.",
    ]
    tags = ["rankpo", "sentence-transformers", "feature-extraction"]
    return card_of(description, "sentence-transformers", "sentence-similarity", tags, about)


def _flash(model: EmbeddingModel) -> bool:
    return str(model.base.config._attn_implementation).startswith("flash")


def _write_sentence_transformers(folder: Path, model: EmbeddingModel) -> None:
    settings = model.settings
    # sentence-transformers cuts after Normalize and leaves less than a unit vector: a layer in front of it cuts instead
    cut = settings.truncate_dim if settings.normalize else None
    names = ["Transformer", "Pooling", *(["Dense"] if cut else []), *(["Normalize"] if settings.normalize else [])]
    modules = []
    for number, name in enumerate(names):
        path = "" if number == 0 else f"{number}_{name}"
        (folder / path).mkdir(exist_ok=True)
        modules.append({"idx": number, "name": str(number), "path": path, "type": f"{CLASSES}.{name}"})
    write_json(folder / "modules.json", modules)
    width = int(model.base.config.get_text_config().hidden_size)
    if cut:
        _write_cut(folder / "2_Dense", width, cut)
    pooling = {
        "word_embedding_dimension": width,
        **{key: name == settings.pooling for name, key in POOLING_KEYS.items()},
        **dict.fromkeys(OTHER_POOLING_KEYS, False),
        "include_prompt": True,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": settings.passage_max_length, "do_lower_case": False}
    )
    versions = {
        "sentence_transformers": "5.0.0",
        "transformers": transformers.__version__,
        "pytorch": torch.__version__.split("+")[0],
    }
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": versions,
            "prompts": {"query": settings.query_prompt, "document": settings.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if settings.normalize else "dot",
            **({} if settings.truncate_dim is None or cut else {"truncate_dim": settings.truncate_dim}),
        },
    )


def _write_cut(folder: Path, width: int, dim: int) -> None:
    """A linear layer that keeps the first `dim` of `width` dimensions."""
    identity = "torch.nn.modules.linear.Identity"
    layer = {"in_features": width, "out_features": dim, "bias": False, "activation_function": identity}
    write_json(folder / "config.json", layer)
    save_file({"linear.weight": torch.eye(dim, width)}, folder / "model.safetensors")


def read_settings(folder: Path) -> EmbeddingSettings | None:
    """How a saved model reads and pools texts: from rankpo.json, else from sentence-transformers' files, else None.

    Raises ConfigError for a pooling, a module or a format that rankpo has not.
    """
    if (folder / RECORD).exists():
        return settings_of_kind(folder, "embedding", EmbeddingSettings)
    if not (folder / "modules.json").exists():
        return None
    modules = json.loads((folder / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError([f"{folder}: modules {', '.join(names)}; rankpo reads Transformer, Pooling and Normalize"])
    pooling = read_json(folder / modules[1]["path"] / "config.json")
    general = read_json(folder / "config_sentence_transformers.json")
    prompts = general.get("prompts") or {}
    if not pooling.get("include_prompt", True) and any(prompts.values()):
        raise ConfigError([f"{folder}: the pooling leaves the prompt out, which rankpo cannot"])
    length = _saved_length(folder)
    return EmbeddingSettings(
        pooling=_pooling(pooling),
        normalize="Normalize" in names,
        query_prompt=prompts.get("query", ""),
        passage_prompt=prompts.get("document", prompts.get("passage", "")),
        query_max_length=length,
        passage_max_length=length,
        truncate_dim=general.get("truncate_dim"),
    )


def _saved_length(folder: Path) -> int:
    """Tokens of the longest text: sentence-transformers' own limit, else the tokenizer's, else 512."""
    own = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    general = read_json(folder / "tokenizer_config.json").get("model_max_length")
    # a tokenizer without a limit says 1e30
    return int(own or (general if general is not None and general < 1_000_000 else 512))


def _pooling(config: Mapping[str, Any]) -> str:
    named = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    if "pooling_mode" in config and config["pooling_mode"] in named:
        return named[config["pooling_mode"]]
    chosen = [name for name, key in POOLING_KEYS.items() if config.get(key)]
    if len(chosen) != 1:
        raise ConfigError([f"1_Pooling/config.json asks for {dict(config)}; rankpo pools by cls, mean or last token"])
    return chosen[0]
