"""Folders of sentence-transformers of all generations: their JSON files with modules, lengths and prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError, unknown
from rankpo.models.saved import read_json, read_list

MODULES = "modules.json"
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
    """The modules in their order; [] where there is no modules.json.

    Raises ConfigError for code that is not sentence-transformers' or PyLate's own, and for files outside the folder.
    """
    if not (folder / MODULES).exists():
        return []
    modules = []
    for entry in read_list(folder / MODULES):
        package, _, name = str(entry["type"]).rpartition(".")
        if not f"{package}.".startswith(OWN_PACKAGES):
            raise ConfigError([f"{folder / MODULES}: {entry['type']} is code of its own, which rankpo does not run"])
        place = (folder / str(entry["path"])).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise ConfigError([f"{folder / MODULES}: the path {entry['path']!r} of {name} lies outside the folder"])
        files = TRANSFORMER_CONFIGS if name == "Transformer" else ("config.json",)
        # A module without files has no folder, and config.json of a Transformer belongs to the model.
        config = next((found for file in files if (found := read_json(folder / str(entry["path"]) / file))), {})
        modules.append(Module(name, folder / str(entry["path"]), config))
    return modules


def transformer_folder(folder: Path) -> Path:
    """Returns the folder of weights and tokenizer: the folder itself, or that in modules.json (`0_Transformer`)."""
    first = next(iter(read_modules(folder)), None)
    return first.folder if first is not None and first.name == "Transformer" else folder


def read_general(folder: Path) -> dict[str, object]:
    """The keys of config_sentence_transformers.json. Raises ConfigError for one that is not known."""
    general = read_json(folder / GENERAL)
    check_keys(folder / GENERAL, general, GENERAL_KEYS)
    return general


def check_transformer(module: Module, allowed: Mapping[str, tuple[object, ...]] = NEUTRAL) -> None:
    """Raises ConfigError for an unknown key of a Transformer and for unsupported values."""
    check_keys(module.folder / TRANSFORMER_CONFIGS[0], module.config, (*TRANSFORMER_KEYS, *NEUTRAL))
    for key, value in module.config.items():
        if key in allowed and value not in allowed[key]:
            raise ConfigError([f"{module.folder}: {key}={value!r} of the Transformer is not what rankpo does"])


def check_keys(place: Path, found: Collection[str], known: Collection[str]) -> None:
    """Raises ConfigError for keys of a JSON file that are not known: an unknown key could change every output."""
    if strange := [name for name in found if name not in known]:
        raise ConfigError([unknown(str(place), name, known) for name in strange])


def length_of(module: Module) -> int | None:
    """Tokens of the longest text: the Transformer's own limit, else the tokenizer's, at most the model's positions.

    Returns None without any limit.
    """
    own = module.config.get("max_seq_length")
    general = read_json(module.folder / "tokenizer_config.json").get("model_max_length")
    if general is not None and general > 1_000_000:  # Tokenizers without a limit have 1e30.
        general = None
    positions = positions_of(read_json(module.folder / "config.json"))
    stated = [int(value) for value in (own if own is not None else general, positions) if value is not None]
    return min(stated) if stated else None


def positions_of(config: Mapping[str, object]) -> int | None:
    """Tokens of the longest sequence that an architecture's config.json allows, or None."""
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(limit, int) or limit <= 0 or limit > 1_000_000:
        return None
    return limit - 2 if config.get("model_type") in OFFSET_TYPES else limit
