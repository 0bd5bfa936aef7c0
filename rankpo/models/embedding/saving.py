"""FINAL: a plain transformers folder that sentence-transformers loads too, with the same embeddings.

The older sentence-transformers layout is written: servers mis-pooled the newer one for months, and 6.2 reads both.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.model_card import card, public_name
from rankpo.models.older_transformers import for_older_readers
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.base import RankingModel
    from rankpo.models.embedding.model import EmbeddingModel

SETTINGS_FILE = "rankpo.json"
CLASSES = "sentence_transformers.models"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
SAMPLE_TEXTS = ["a short text", "a text that is a little longer than the other one, and has more words", "word"]
OTHER_POOLING_KEYS = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)


class ExportError(RuntimeError):
    """A folder that would not give the same embeddings elsewhere."""


def export_embedding(folder: Path, model: EmbeddingModel, description: Mapping[str, Any]) -> float:
    """Writes FINAL whole: merged weights, tokenizer, settings, card; adapters beside in adapter/.

    The folder takes its name only once it was loaded again and found equal; what was there before stays until then.
    description: loss, data, metrics and versions for rankpo.json and the card. Returns the largest difference of an
    embedding. Raises ExportError.
    """
    description = {**description, "base_model": public_name(description.get("base_model"))}
    with written_whole(folder) as temporary:
        _save_backbone(merged(model), temporary)
        tokenizer(model).save_pretrained(temporary)
        for_older_readers(temporary)
        _write_sentence_transformers(temporary, model)
        record = {"kind": "embedding", "format": 1, "settings": model.settings.to_json(), **description}
        write_json(temporary / SETTINGS_FILE, record)
        (temporary / "README.md").write_text(card(model.settings, description))
        if model.has_adapters:
            _save_adapters(model, temporary / "adapter")
        return verify_export(temporary, model, SAMPLE_TEXTS)


def _save_backbone(backbone: PreTrainedModel, folder: Path) -> None:
    """Plain transformers files; the attention that only rankpo knows is not named in them."""
    asked = backbone.config._attn_implementation
    backbone.config._attn_implementation = "sdpa"
    try:
        backbone.save_pretrained(folder)
    finally:
        backbone.config._attn_implementation = asked


def _save_adapters(model: EmbeddingModel, folder: Path) -> None:
    """adapter/: for peft, and for sentence-transformers, which looks for its files beside the adapters."""
    adapters: Any = model.backbone
    adapters.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card: empty headings, and the base's local path
    tokenizer(model).save_pretrained(folder)
    _write_sentence_transformers(folder, model)


def tokenizer(model: EmbeddingModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token: others pad their batches, and refuse a tokenizer that has none.

    Which token it is does not matter, since masks hide it.
    """
    if model.tokenizer.pad_token is not None:
        return model.tokenizer
    padded = copy.deepcopy(model.tokenizer)
    padded.pad_token = padded.eos_token or padded.sep_token or padded.unk_token
    return padded


def merged(model: RankingModel) -> PreTrainedModel:
    """The bare backbone; with adapters, a copy into which they are merged: the training model stays as it is."""
    if not model.has_adapters:
        return model.base
    adapters: Any = copy.deepcopy(model.backbone)
    return adapters.merge_and_unload()


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
    import torch
    import transformers

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
    import torch
    from safetensors.torch import save_file

    identity = "torch.nn.modules.linear.Identity"
    layer = {"in_features": width, "out_features": dim, "bias": False, "activation_function": identity}
    write_json(folder / "config.json", layer)
    save_file({"linear.weight": torch.eye(dim, width)}, folder / "model.safetensors")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_settings(folder: Path) -> EmbeddingSettings | None:
    """How a saved model reads and pools texts: from rankpo.json, else from sentence-transformers' files, else None.

    Raises ConfigError for a pooling, a module or a format that rankpo has not.
    """
    own = folder / SETTINGS_FILE
    if own.exists():
        return EmbeddingSettings.from_json(json.loads(own.read_text())["settings"])
    if not (folder / "modules.json").exists():
        return None
    modules = json.loads((folder / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError([f"{folder}: modules {', '.join(names)}; rankpo reads Transformer, Pooling and Normalize"])
    pooling = _read_json(folder / modules[1]["path"] / "config.json")
    general = _read_json(folder / "config_sentence_transformers.json")
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
    own = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    general = _read_json(folder / "tokenizer_config.json").get("model_max_length")
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


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def verify_export(folder: Path, model: EmbeddingModel, texts: list[str]) -> float:
    """Largest difference between ours and the folder's embeddings, loaded by plain transformers, padded together.

    Raises ExportError if it exceeds 1e-5 of the largest entry, or 2e-2 with flash attention, which has no float32.
    """
    import torch
    from transformers import AutoModel

    from rankpo.models.embedding.model import EmbeddingModel as Model

    flash = model.base.config._attn_implementation.startswith("flash")
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    plain = Model(backbone, model.tokenizer, model.settings, layout="padded").to(model.device)
    sequences = model.inputs.sequences(texts, "candidate")
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=flash):
        theirs, ours = plain.encode_sequences(sequences), model.encode_sequences(sequences)
    difference = float((theirs - ours).abs().max())
    tolerance = (2e-2 if flash else 1e-5) * max(1.0, float(ours.abs().max()))
    if not difference <= tolerance:
        raise ExportError(f"{folder}: loaded again, embeddings differ by {difference:.2e}, more than {tolerance:.0e}")
    return difference
