"""EmbeddingFolder: a transformers folder that sentence-transformers loads with equal embeddings.

The format is the older sentence-transformers layout, which release 6.2 also reads, since servers pooled the newer
layout wrongly for months.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.prior import read_prior, write_prior
from rankpo.models.embedding.reading import POOLING_KEYS, POOLING_NAMES, layer_folders
from rankpo.models.embedding.routes import PoolingModule, pooling_modules, write_module, write_routes
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.layers import cut_layer, read_weights, their_keys, write_weights
from rankpo.models.loading import headless
from rankpo.models.model_card import card_of, origin
from rankpo.models.saved import read_json
from rankpo.models.saving import FolderFormat, sentence_transformers_config, write_json
from rankpo.models.st_folders import STATIC
from rankpo.models.static import StaticModel
from rankpo.storage.printable import markdown

CLASSES = "sentence_transformers.models"
BY_TRANSFORMERS = """
from transformers import AutoModel, AutoTokenizer  # pool and normalise as stated above
backbone, tokenizer = AutoModel.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
"""
USE = f"""## Use

```python
import rankpo
model = rankpo.load("FOLDER")
scores = model.encode(["a query"], role="query") @ model.encode(["a passage"]).T

from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")
scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T
{BY_TRANSFORMERS}```"""
PRIOR = (
    "The last dimension of a passage's vector is its prior, a score independent of the query, times {weight:g}; for a "
    "query it is 1. Compare vectors by inner products, not by cosines, and encode texts in their roles (`encode_query`, "
    "`encode_document`, or `role=`). transformers alone does not compute the prior."
)
SAMPLE_TEXTS = ["a short text", "a text that is a little longer than the other one, and has more words", "word"]


class EmbeddingFolder(FolderFormat[EmbeddingModel]):
    """The folder format of kind embedding; differences are relative to the largest entry, if that exceeds 1."""

    kind = "embedding"
    output = "embeddings"

    def tokenizer(self, model: EmbeddingModel) -> PreTrainedTokenizerBase:
        """Adds a pad token, which other libraries need for their batches.

        The choice of token does not matter, since padding is masked.
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

    def card(self, model: EmbeddingModel, description: Mapping[str, object]) -> str:
        card = embedding_card(model.settings, description)
        return card.replace(BY_TRANSFORMERS, "") if isinstance(model.base, StaticModel) else card

    def allowed(self, model: EmbeddingModel) -> float:
        """Returns a larger tolerance for flash attention, which has no float32."""
        return 2e-2 if _flash(model) else 1e-5

    def difference(self, folder: Path, model: EmbeddingModel) -> float:
        """Compares with the folder as transformers loads it, on padded sample texts."""
        family = headless(read_json(folder / "config.json"))
        backbone = family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        inputs = EmbeddingInputs(model.tokenizer, model.settings)
        plain = EmbeddingModel(backbone, inputs, layout="padded").eval()
        read_weights(plain.layers, layer_folders(folder, len(plain.layers), model.settings))
        if plain.prior is not None:
            read_prior(plain.prior, folder)
        plain.to(model.device)
        sequences = inputs.sequences_of(SAMPLE_TEXTS, "candidate")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_flash(model)):
            theirs, ours = plain.encode_sequences(sequences), model.encode_sequences(sequences)
        return float((theirs - ours).abs().max()) / max(1.0, float(ours.abs().max()))


def embedding_card(settings: EmbeddingSettings, description: Mapping[str, object]) -> str:
    """The README.md of an embedding model."""
    about = [
        f"A bi-encoder {origin(description)}.",
        f"{settings.pooling} pooling, {'normalised' if settings.normalize else 'not normalised'}; "
        f"queries up to {settings.query_max_length} tokens, passages up to {settings.passage_max_length}.",
        *([PRIOR.format(weight=settings.prior_weight)] if settings.prior_layers else []),
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
    layers: list[tuple[str, nn.Module | None, dict[str, object]]] = [
        (keys["type"], layer, their_keys(keys))
        for keys, layer in zip(settings.sized(model.width)[0], model.layers, strict=True)
    ]
    # sentence-transformers truncates after Normalize, so vectors would be shorter than 1, and it would remove the last
    # dimension, which holds the prior. Therefore a layer before Normalize truncates.
    cut = settings.truncate_dim if settings.normalize or model.prior is not None else None
    if cut:
        layer = cut_layer(model.full_dim, cut)
        keys = {"in_features": model.full_dim, "out_features": cut, "bias": False, "activation": "Identity"}
        layers.append(("Dense", layer, their_keys({"type": "Dense", "residual": False, **keys})))
    if settings.normalize:
        layers.append(("Normalize", None, {}))
    if model.prior is not None:
        layers.append(("Router", None, {}))
    first, pooling = _first_modules(model)
    names = [first, *(name for name, _, _ in pooling), *(name for name, _, _ in layers)]
    modules, paths = [], []
    for number, name in enumerate(names):
        place = "" if number == 0 else f"{number}_{name}"
        (folder / place).mkdir(exist_ok=True)
        modules.append({"idx": number, "name": str(number), "path": place, "type": f"{CLASSES}.{name}"})
        paths.append(folder / place)
    write_json(folder / "modules.json", modules)
    for (_, own, tensors), path in zip(pooling, paths[1:], strict=False):
        write_module(path, own, tensors)
    for (_, made, keys), path in zip(layers, paths[1 + len(pooling) :], strict=True):
        if keys:
            write_json(path / "config.json", keys)
        if made is not None:
            write_weights(made, path)
    if model.prior is not None:
        write_prior(model.prior, folder)
        write_routes(paths[-1], model.prior, settings, model.topic_dim, model.depth)
    if first != STATIC:
        write_json(folder / "sentence_bert_config.json", _transformer_keys(model))
    write_json(folder / "config_sentence_transformers.json", _general(settings, cut))


def _first_modules(model: EmbeddingModel) -> tuple[str, Sequence[PoolingModule]]:
    """The module that reads texts, and those that pool its tokens: none behind static token embeddings, which are pooled."""
    if isinstance(model.base, StaticModel):
        return STATIC, ()
    keys = _pooling_keys(model.settings, model.width)
    return "Transformer", pooling_modules(model.settings, model.width, model.depth, keys)


def _transformer_keys(model: EmbeddingModel) -> dict[str, object]:
    """Keys of the Transformer; modules behind it find the states of all layers where the model reads them."""
    keys: dict[str, object] = {"max_seq_length": model.settings.passage_max_length, "do_lower_case": False}
    return {**keys, "config_args": {"output_hidden_states": True}} if model.read_layers_of else keys


def _pooling_keys(settings: EmbeddingSettings, width: int) -> dict[str, object]:
    """Returns the config.json of the pooling."""
    ways = settings.pooling.split("+")
    chosen: dict[str, object]
    if [way for way in POOLING_KEYS.values() if way in ways] == ways:
        chosen = {key: way in ways for key, way in POOLING_KEYS.items()}
    else:  # Only the newer form defines an order.
        theirs = {own: name for name, own in POOLING_NAMES.items()}
        chosen = {"pooling_mode": [theirs[way] for way in ways]}
    return {"word_embedding_dimension": width, **chosen, "include_prompt": settings.include_prompt}


def _general(settings: EmbeddingSettings, cut: int | None) -> dict[str, object]:
    similarity = "cosine" if settings.normalize and not settings.prior_layers else "dot"
    more = {} if settings.truncate_dim is None or cut else {"truncate_dim": settings.truncate_dim}
    return sentence_transformers_config("SentenceTransformer", "5.0.0", settings, similarity, **more)
