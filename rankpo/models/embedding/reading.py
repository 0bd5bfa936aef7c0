"""Reader of embedding models in folders of rankpo and of all generations of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError, unknown
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.layer_keys import LAYERS, read_layer
from rankpo.models.saved import RECORD, Stated, own_statement, read_json
from rankpo.models.st_folders import (
    STATIC,
    Module,
    check_keys,
    check_transformer,
    length_of,
    passage_name,
    read_general,
    read_modules,
    read_route,
    static_length,
)

POOLING_KEYS = {  # In the order in which sentence-transformers concatenates several of them.
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
LONGEST_STATIC = 8192  # Tokens of a text whose tokenizer states no truncation; there, sentence-transformers reads all.
PLAIN = "config.json"  # The source of settings in folders of transformers alone.


def read_folder(folder: Path) -> Stated | None:
    """Returns the settings in rankpo.json, else those in sentence-transformers' files, else None.

    Raises ConfigError for modules, keys and values with which embeddings would differ from those of
    sentence-transformers.
    """
    if (folder / RECORD).exists():
        return own_statement(folder, ("embedding",), EmbeddingSettings)
    modules = read_modules(folder)
    if not modules:
        return _plain(folder)
    names = [module.name for module in modules]
    if names[0] == STATIC and set(names[1:]) <= set(LAYERS):
        return _static(folder, modules)
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= set(LAYERS):
        raise ConfigError(
            [
                f"{folder}: modules {', '.join(names)}; rankpo supports Transformer and Pooling, or {STATIC}, and then "
                f"{', '.join(LAYERS)}{_advice(folder, names)}"
            ]
        )
    check_transformer(modules[0])
    general = read_general(folder)
    values = {
        **_pooling(modules[1]),
        **_layers(modules[2:], general, folder),
        **_prompts(general),
        **_lengths(modules[0]),
    }
    if read_json(modules[0].folder / "config.json").get("is_causal") is False:
        values["bidirectional"] = True
    if general.get("truncate_dim") is not None:
        values["truncate_dim"] = general["truncate_dim"]
    return Stated(
        values=values,
        source="sentence-transformers' files",
        notes=_notes(general, folder),
        lower_case=bool(modules[0].config.get("do_lower_case")),
    )


def _advice(folder: Path, names: Sequence[str]) -> str:
    """What to load in place of a folder with modules that are not supported."""
    if "Router" not in names and "WeightedLayerPooling" not in names:
        return ""
    own = "; of a model that rankpo wrote, load that folder itself, whose rankpo.json other libraries do not copy"
    routes = [module.folder for module in read_route(folder, "document")] if names[0] == "Router" else []
    alone = next(
        (path for path in routes if path.resolve() != folder.resolve() and (path / "config.json").exists()), None
    )
    return own if alone is None else f"; to start from its model of passages alone, set model.load_from={alone}"


def _plain(folder: Path) -> Stated | None:
    """Returns the settings that config.json states."""
    if read_json(folder / "config.json").get("is_causal") is not False:
        return None
    return Stated(values={"bidirectional": True}, source=PLAIN)


def _static(folder: Path, modules: Sequence[Module]) -> Stated:
    """The settings of a StaticEmbedding: the mean of all tokens, those of a prompt too, and of texts of any length."""
    general = read_general(folder)
    length = static_length(modules[0]) or LONGEST_STATIC
    values: dict[str, object] = {
        "pooling": "mean",
        "include_prompt": True,
        **_layers(list(modules[1:]), general, folder),
        **_prompts(general),
        **{f"{role}_max_length": length for role in ("query", "passage")},
    }
    if general.get("truncate_dim") is not None:
        values["truncate_dim"] = general["truncate_dim"]
    return Stated(values=values, source="sentence-transformers' files", notes=_notes(general, folder))


def layer_folders(folder: Path, count: int, settings: EmbeddingSettings) -> list[Path]:
    """The folders of the layers behind the pooling, [] where the checkpoint has none. count: of the model's layers.
    settings: of the model, which say how many modules do the pooling.

    FINAL of a model that cuts and normalises has one layer more, which does the cutting.
    """
    modules = read_modules(folder)
    pooling = 0 if modules and modules[0].name == STATIC else num_pooling_modules(settings)
    first = 1 + pooling
    return [module.folder for module in modules[first : first + count]]


def num_pooling_modules(settings: EmbeddingSettings) -> int:
    """The number of modules in a folder of ours that pool: one, or those of several layers, see `routes.py`."""
    return 1 if not settings.pooled_layers else 3 * len(settings.pooled_layers) - 1


def _pooling(module: Module) -> dict[str, object]:
    config = module.config
    place = module.folder / "config.json"
    known = ("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *POOLING_KEYS)
    check_keys(place, config, known)
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = [named] if isinstance(named, str) else list(named)
        if strange := [mode for mode in modes if mode not in POOLING_NAMES]:
            raise ConfigError([unknown(f"{place}: pooling_mode", strange[0], POOLING_NAMES)])
        pooling = [POOLING_NAMES[mode] for mode in modes]
    else:
        pooling = [name for key, name in POOLING_KEYS.items() if config.get(key)] or ["mean"]
    return {"pooling": "+".join(pooling), "include_prompt": bool(config.get("include_prompt", True))}


def _layers(modules: list[Module], general: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Returns the layers and `normalize`, which is also true if the similarity is the cosine."""
    similarity = general.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot"):
        raise ConfigError(
            [f"{folder}: similarity {similarity} is not supported; it must be cosine or dot (inner products)"]
        )
    ends = bool(modules) and modules[-1].name == "Normalize"
    layers = [read_layer(module, "sentence_embedding") for module in modules]
    if ends:
        layers.pop()
    return {"layers": tuple(layers), "normalize": ends or similarity != "dot"}


def _prompts(general: Mapping[str, Any]) -> dict[str, str]:
    prompts = general.get("prompts") or {}
    return {
        "query_prompt": prompts.get("query") or "",
        "passage_prompt": prompts.get(passage_name(prompts)) or "",
    }


def _lengths(module: Module) -> dict[str, int]:
    lengths = {}
    for name, key in (("query_max_length", "query_length"), ("passage_max_length", "document_length")):
        stated = module.config.get(key) or length_of(module)
        if stated is not None:
            lengths[name] = int(stated)
    return lengths


def _notes(general: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    prompts = general.get("prompts") or {}
    unused = [name for name, text in prompts.items() if text and name not in ("query", passage_name(prompts))]
    lines = []
    if (chosen := passage_name(prompts)) != "document":
        lines.append(
            f"{folder}: passages get its prompt {chosen}; sentence-transformers' encode_document adds it only with "
            f"prompt_name={chosen}; to add none, set model.passage_prompt=''"
        )
    if unused:
        lines.append(
            f"{folder}: the prompts {', '.join(unused)} are not used; to change prompts, set model.query_prompt or model.passage_prompt"
        )
    if heads := [name for name in ("colbert_linear.pt", "sparse_linear.pt") if (folder / name).exists()]:
        lines.append(f"{folder}: {' and '.join(heads)} are not used, since kind=embedding uses only the dense vectors")
    return tuple(lines)
