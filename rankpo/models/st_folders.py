"""Folders of sentence-transformers of all generations: their JSON files with modules, lengths and prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError, unknown
from rankpo.models.saved import RECORD, Stated, read_json, read_list, saved_kind

MODULES = "modules.json"
PASSAGE_PROMPTS = ("document", "passage", "corpus")  # The first that a folder states is the prompt of passages.
ROUTER = "router_config.json"
TRANSFORMERS = ("Transformer", "MLMTransformer")
STATIC = "StaticEmbedding"
GENERAL = "config_sentence_transformers.json"
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
OWN_PACKAGES = ("sentence_transformers.", "pylate.models.")
GENERAL_KEYS = (
    "__version__",
    "model_type",
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "truncate_dim",
    "activation_fn",
)
# rankpo supports only these values of a Transformer's keys.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "processing_kwargs": ({}, None),
    "unpad_inputs": (True, False, None),
    "query_expansion": (None,),
    "model_args": ({}, None),
    "tokenizer_args": ({}, None),
    "config_args": ({}, None),
    "model_kwargs": ({}, None),
    "processor_kwargs": ({}, None),
    "config_kwargs": ({}, None),
    "tokenizer_name_or_path": (None,),
}
TRANSFORMER_KEYS = ("max_seq_length", "do_lower_case", "query_length", "document_length")
# These architectures do not use their first two rows of positions.
OFFSET_TYPES = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text")


@dataclass(frozen=True)
class Module:
    """One entry of modules.json. name: the class without its package. folder: of its files. config: its keys."""

    name: str
    folder: Path
    config: Mapping[str, Any]


def read_modules(folder: Path) -> list[Module]:
    """Returns the modules in order; [] if there is no modules.json.

    Raises ConfigError for classes outside sentence-transformers and PyLate, and for files outside the folder.
    """
    if not (folder / MODULES).exists():
        return []
    entries = read_list(folder / MODULES)
    return [_module(folder, MODULES, str(entry["type"]), str(entry["path"])) for entry in entries]


def read_route(folder: Path, route: str) -> list[Module]:
    """Returns the modules of a route of a Router, such as query or document. Raises ConfigError like `read_modules`."""
    router = read_json(folder / ROUTER)
    names = router.get("structure", {}).get(route, [])
    return [_module(folder, ROUTER, str(router["types"][name]), str(name)) for name in names]


def _module(folder: Path, file: str, kind: str, path: str) -> Module:
    package, _, name = kind.rpartition(".")
    if not f"{package}.".startswith(OWN_PACKAGES):
        raise ConfigError(
            [
                f"{folder / file}: rankpo does not run the code of {kind}; it supports only modules of sentence-transformers and PyLate"
            ]
        )
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError([f"{folder / file}: the path {path!r} of {name} lies outside the folder"])
    files = TRANSFORMER_CONFIGS if name in TRANSFORMERS else ("config.json",)
    # A module without files has no folder, and the config.json of a Transformer is that of the backbone.
    config = next((found for config in files if (found := read_json(folder / path / config))), {})
    return Module(name, folder / path, config)


def transformer_folder(folder: Path) -> Path:
    """Returns the folder of weights and tokenizer: the folder itself, its subfolder in modules.json
    (`0_Transformer`, `0_StaticEmbedding`), or the subfolder for documents of a Router."""
    first = next(iter(read_modules(folder)), None)
    if first is not None and first.name == "Router":
        first = next(iter(read_route(folder, "document")), None)
    return first.folder if first is not None and first.name in (*TRANSFORMERS, STATIC) else folder


def read_general(folder: Path, more: Collection[str] = ()) -> dict[str, object]:
    """Returns the keys of config_sentence_transformers.json. Raises ConfigError for an unknown key.

    more: further keys that the calling kind supports.
    """
    general = read_json(folder / GENERAL)
    check_keys(folder / GENERAL, general, (*GENERAL_KEYS, *more))
    return general


def check_transformer(module: Module, allowed: Mapping[str, tuple[object, ...]] = NEUTRAL) -> None:
    """Raises ConfigError for an unknown key of a Transformer and for unsupported values."""
    check_keys(module.folder / TRANSFORMER_CONFIGS[0], module.config, (*TRANSFORMER_KEYS, *NEUTRAL))
    for key, value in module.config.items():
        if key in allowed and value not in allowed[key]:
            raise ConfigError([f"{module.folder}: {key}={value!r} of the Transformer is not supported by rankpo"])


def check_keys(place: Path, found: Collection[str], known: Collection[str]) -> None:
    """Raises ConfigError for unknown keys of a JSON file, since an unknown key could change every output."""
    if strange := [name for name in found if name not in known]:
        raise ConfigError([unknown(str(place), name, known) for name in strange])


def length_of(module: Module) -> int | None:
    """Returns the maximum tokens of a text: the limit of the Transformer or else the tokenizer, and of the positions.

    Returns None if there is no limit.
    """
    own = module.config.get("max_seq_length")
    general = read_json(module.folder / "tokenizer_config.json").get("model_max_length")
    if general is not None and general > 1_000_000:  # Tokenizers without a limit store 1e30.
        general = None
    positions = positions_of(read_json(module.folder / "config.json"))
    stated = [int(value) for value in (own if own is not None else general, positions) if value is not None]
    return min(stated) if stated else None


def static_length(module: Module) -> int | None:
    """Returns the maximum tokens of a text by the tokenizer.json of a StaticEmbedding; None without truncation."""
    truncation = read_json(module.folder / "tokenizer.json").get("truncation")
    return None if truncation is None else int(truncation["max_length"])


def plain_lengths(folder: Path, given: Mapping[str, int]) -> dict[str, int]:
    """Returns the lengths above the limit of a folder's tokenizer or positions, lowered to the limit.

    given: maximum tokens by key. For folders without a statement of their lengths.
    """
    limit = length_of(Module("Transformer", transformer_folder(folder), {}))
    return {name: limit for name, value in given.items() if limit is not None and value > limit}


def positions_of(config: Mapping[str, object]) -> int | None:
    """Returns the maximum tokens of a sequence by the architecture's config.json, or None."""
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(limit, int) or limit <= 0 or limit > 1_000_000:
        return None
    return limit - 2 if config.get("model_type") in OFFSET_TYPES else limit


def passage_name(prompts: Mapping[str, object]) -> str:
    """Returns the name of the prompt of passages, as sentence-transformers documents it for `encode_document`: a stated
    `document` prompt is used even if it is empty."""
    return next((name for name in PASSAGE_PROMPTS if prompts.get(name) is not None), PASSAGE_PROMPTS[0])


def start_of(folder: Path, new: str) -> Stated | None:
    """The prompts of an embedding model's folder, from which a model of another kind starts; None for other folders.

    new: what the other kind adds to the encoder, for the note.
    """
    if saved_kind(folder) != "embedding":
        return None
    if record := read_json(folder / RECORD):
        found = record["settings"]
        prompts = {role: found.get(f"{role}_prompt") for role in ("query", "passage")}
    elif (folder / MODULES).exists():
        stated = read_json(folder / GENERAL).get("prompts") or {}
        prompts = {"query": stated.get("query"), "passage": stated.get(passage_name(stated))}
    else:
        return None
    note = f"{folder} holds an embedding model: training starts from its encoder with {new}"
    values = {f"{role}_prompt": text for role, text in prompts.items() if text}
    return Stated(values=values, source="its prompts", notes=(note,))
