"""Reader of sparse models in folders of rankpo and of sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rankpo.errors import ConfigError
from rankpo.models.saved import RECORD, Stated, own_statement, read_json
from rankpo.models.sparse.settings import SparseSettings
from rankpo.models.st_folders import (
    NEUTRAL,
    ROUTER,
    TRANSFORMERS,
    Module,
    check_keys,
    check_transformer,
    length_of,
    passage_name,
    read_general,
    read_modules,
    read_route,
    start_of,
)

POOLING_KEYS = ("pooling_strategy", "activation_function", "embedding_dimension", "word_embedding_dimension")
MASKED: Mapping[str, tuple[object, ...]] = {
    **NEUTRAL,
    "transformer_task": ("fill-mask",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "logits"}},),
}
LENGTHS = ("query_max_length", "passage_max_length")
ROUTER_PARAMETERS: Mapping[str, tuple[object, ...]] = {
    "default_route": ("document", "query", None),
    "allow_empty_key": (True, False),
    "route_mappings": ({}, None),
}


def read_folder(folder: Path) -> Stated | None:
    """Returns the settings in rankpo.json, else those in sentence-transformers' files, else None.

    Raises ConfigError for modules, keys and values with which vectors would differ from those of
    sentence-transformers.
    """
    if (start := start_of(folder, "the masked-language head of its files, or a new one")) is not None:
        return start
    if (folder / RECORD).exists():
        return own_statement(folder, ("sparse",), SparseSettings)
    modules = read_modules(folder)
    if not modules:
        return None
    general = read_general(folder, ("max_active_dims",))
    if general.get("similarity_fn_name") not in (None, "dot"):
        raise ConfigError(
            [f"{folder}: similarity {general['similarity_fn_name']}; rankpo compares sparse vectors by dot products"]
        )
    static: dict[str, object] = {}
    if [module.name for module in modules] == ["Router"]:
        modules, static = _routed(folder)
    if len(modules) != 2 or modules[0].name not in TRANSFORMERS or modules[1].name != "SpladePooling":
        names = ", ".join(module.name for module in modules)
        raise ConfigError(
            [f"{folder}: modules {names}; kind=sparse supports a masked-language Transformer followed by SpladePooling"]
        )
    check_transformer(modules[0], MASKED)
    prompts: Mapping[str, str] = general.get("prompts") or {}  # type: ignore[assignment]
    limit = {} if (length := length_of(modules[0])) is None else dict.fromkeys(LENGTHS, length)
    values = {
        "query_prompt": prompts.get("query") or "",
        "passage_prompt": prompts.get(passage_name(prompts)) or "",
        "max_active": general.get("max_active_dims"),
        "query_encoder": "same",
        **limit,
        **_pooling(modules[1]),
        **static,
    }
    lower_case = bool(modules[0].config.get("do_lower_case"))
    return Stated(values=values, source="sentence-transformers' files", lower_case=lower_case)


def static_folder(folder: Path) -> Path | None:
    """Returns the folder with the weights of static queries, or None if the model encodes queries."""
    modules = read_modules(folder)
    if [module.name for module in modules] != ["Router"]:
        return None
    return read_route(folder, "query")[0].folder


def _routed(folder: Path) -> tuple[list[Module], dict[str, object]]:
    """The modules of documents, and the settings of static queries."""
    place = folder / ROUTER
    router = read_json(place)
    check_keys(place, router, ("types", "structure", "parameters"))
    parameters = router.get("parameters", {})
    check_keys(place, parameters, tuple(ROUTER_PARAMETERS))
    for key, value in parameters.items():
        if value not in ROUTER_PARAMETERS[key]:
            raise ConfigError([f"{place}: {key}={value!r} is not supported by rankpo"])
    check_keys(place, router["structure"], ("query", "document"))
    queries, documents = read_route(folder, "query"), read_route(folder, "document")
    if [module.name for module in queries] != ["SparseStaticEmbedding"]:
        names = ", ".join(module.name for module in queries)
        raise ConfigError(
            [f"{folder}: queries use the modules {names}; kind=sparse supports only SparseStaticEmbedding for them"]
        )
    check_keys(queries[0].folder / "config.json", queries[0].config, ("frozen",))
    _check_same_tokens(queries[0].folder, documents[0].folder)
    static = {"query_encoder": "static", "freeze_query_weights": bool(queries[0].config.get("frozen", False))}
    limit = read_json(queries[0].folder / "tokenizer_config.json").get("model_max_length")
    if limit is not None and limit <= 1_000_000:  # Tokenizers without a limit have 1e30.
        static["query_max_length"] = int(limit)
    return documents, static


def _check_same_tokens(one: Path, other: Path) -> None:
    """Raises ConfigError if queries and documents have different tokenizers, since their entries would differ."""
    if _tokens(one) != _tokens(other):
        raise ConfigError([f"{one} and {other} hold different tokenizers; kind=sparse uses one for both"])


def _tokens(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in ("truncation", "padding")}


def _pooling(module: Module) -> dict[str, object]:
    check_keys(module.folder / "config.json", module.config, POOLING_KEYS)
    form = {
        "pooling": module.config.get("pooling_strategy", "max"),
        "activation": module.config.get("activation_function", "relu"),
    }
    try:
        SparseSettings(**form)
    except ValueError as error:
        raise ConfigError([f"{module.folder / 'config.json'}: {error}"]) from error
    return form
