"""Reader of late-interaction folders of rankpo, sentence-transformers, PyLate up to 3 and Stanford ColBERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.models.late_interaction import legacy
from rankpo.models.late_interaction.settings import INLINE, SIMILARITIES, LateInteractionSettings
from rankpo.models.layer_keys import read_layer
from rankpo.models.layers import inline_tensor, read_weights
from rankpo.models.saved import RECORD, Stated, is_stanford, own_statement, read_json, saved_kind
from rankpo.models.st_folders import (
    GENERAL,
    GENERAL_KEYS,
    NEUTRAL,
    Module,
    check_keys,
    check_transformer,
    length_of,
    read_modules,
    start_of,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

KIND = "late_interaction"
MASK_KEYS = ("skiplist_words", "skiplist_tasks", "keep_only_token_ids")
TOKENS = "token_embeddings"  # sentence-transformers' name of the output that the layers act on
PLAIN_DENSE = {"bias": False, "activation": "Identity", "residual": False}


def read_folder(folder: Path) -> Stated | None:
    """Returns all settings of a late-interaction folder, or only the prompts of an embedding model's folder.

    Raises ConfigError for modules, keys and values with which scores would differ from those of sentence-transformers.
    """
    if (start := start_of(folder, "a new projection for token vectors")) is not None:
        return start
    if (folder / RECORD).exists():
        return own_statement(folder, (KIND,), LateInteractionSettings)
    if is_stanford(folder):
        return legacy.read_stanford(folder, inline_dim(folder))
    modules = read_modules(folder)
    if not modules:
        return None
    if (kind := saved_kind(folder)) != KIND:
        raise ConfigError([f"{folder} holds a model of kind {kind}, not {KIND}; add kind={kind}"])
    return _of_modules(folder, modules, read_json(folder / GENERAL))


def _of_modules(folder: Path, modules: Sequence[Module], general: Mapping[str, object]) -> Stated:
    """Reads a Transformer followed by Dense layers, MultiVectorMask and Normalize, whose order may vary."""
    old = legacy.is_pylate(general)
    check_keys(folder / GENERAL, general, (*GENERAL_KEYS, *(legacy.PYLATE_KEYS if old else ())))
    names = [module.name for module in modules]
    layers = [module for module in modules if module.name == "Dense"]
    known = {"Dense", "MultiVectorMask", "Normalize"}
    if names[:1] != ["Transformer"] or not set(names[1:]) <= known or _normalises_early(names):
        raise ConfigError(
            [
                f"{folder}: modules {', '.join(names)}; rankpo reads Transformer, Dense, MultiVectorMask and Normalize; "
                "pool tokens when they are indexed: task=encode task.pool_factor=2"
            ]
        )
    check_transformer(modules[0], {name: value for name, value in NEUTRAL.items() if name != "query_expansion"})
    mask = next((module for module in modules if module.name == "MultiVectorMask"), None)
    values: dict[str, object] = {
        **_projection([read_layer(module, TOKENS) for module in layers]),
        **_scores(general, folder, old),
        **(_mask(mask) if mask is not None else {"skip": ()}),
        "normalize": _normalises(modules),
        **legacy.encoding({**legacy.knobs(general), **_stated_knobs(modules[0])}, length_of(modules[0])),
        **_prompts(legacy.with_prefixes(general), ("document",)),
    }
    if general.get("model_type") == legacy.PYLATE_TYPE:
        values |= {"normalize": True, "skip": legacy.skipped(general)}
    _check_side(modules[0].folder, values)
    lower = bool(modules[0].config.get("do_lower_case"))
    source = "PyLate's files" if old else "sentence-transformers' files"
    return Stated(values=values, source=source, notes=_notes(general, folder), lower_case=lower)


def _normalises_early(names: Sequence[str]) -> bool:
    """Whether a Dense layer follows a Normalize."""
    return "Normalize" in names and "Dense" in names[names.index("Normalize") :]


def _normalises(modules: Sequence[Module]) -> bool:
    found = [module for module in modules if module.name == "Normalize"]
    for module in found:
        read_layer(module, TOKENS)  # Raises for a layer on another output.
    return bool(found)


def _stated_knobs(transformer: Module) -> dict[str, object]:
    names = ("query_length", "document_length", "query_expansion")
    return {name: transformer.config[name] for name in names if name in transformer.config}


def _projection(layers: Sequence[Mapping[str, object]]) -> dict[str, object]:
    if not layers:
        return {"dim": None, "layers": ()}
    plain = len(layers) == 1 and all(layers[0][name] == value for name, value in PLAIN_DENSE.items())
    return {"dim": layers[-1]["out_features"], "layers": () if plain else tuple(layers)}


def _scores(general: Mapping[str, object], folder: Path, old: bool) -> dict[str, object]:
    name = general.get("similarity_fn_name")
    if name not in SIMILARITIES and not old:
        raise ConfigError([f"{folder}: similarity {name} is not supported; it must be maxsim or meanmaxsim"])
    return {"normalize_scores": SIMILARITIES.get(name if isinstance(name, str) else None, False)}


def _mask(module: Module) -> dict[str, object]:
    place = module.folder / "config.json"
    check_keys(place, module.config, MASK_KEYS)
    if module.config.get("keep_only_token_ids"):
        raise ConfigError([f"{place}: keep_only_token_ids is for images, and rankpo supports only texts"])
    tasks = module.config.get("skiplist_tasks")
    chosen = {"document"} if tasks is None else {tasks} if isinstance(tasks, str) else set(tasks)
    words = tuple(module.config.get("skiplist_words") or ())
    if not words or not chosen:
        return {"skip": ()}
    if "document" not in chosen or not chosen <= {"document", "query"}:
        raise ConfigError(
            [f"{place}: skiplist_tasks={tasks} is not supported; it must name document, or query and document"]
        )
    return {"skip": words, "skip_queries": "query" in chosen}


def _prompts(prompts: Mapping[str, object], names: Sequence[str]) -> dict[str, str]:
    """Returns the prompts of queries and passages. names: accepted names of the passage prompt."""
    passage = next((prompts[name] for name in names if prompts.get(name)), "")
    return {"query_prompt": str(prompts.get("query") or ""), "passage_prompt": str(passage or "")}


def _notes(general: Mapping[str, object], folder: Path) -> tuple[str, ...]:
    prompts = legacy.with_prefixes(general)
    unused = [name for name, text in prompts.items() if text and name not in ("query", "document")]
    if not unused:
        return ()
    line = f"{folder}: the prompts {', '.join(unused)} are not used; to change prompts, set model.query_prompt or model.passage_prompt"
    return (line,)


def _check_side(folder: Path, values: Mapping[str, object]) -> None:
    """Raises ConfigError if sentence-transformers would put expansion tokens before the query."""
    if (
        values["query_expansion"] != "none"
        and read_json(folder / "tokenizer_config.json").get("padding_side") == "left"
    ):
        raise ConfigError(
            [
                f"{folder}: the tokenizer pads on the left, so expansion tokens would precede the query; rankpo appends them"
            ]
        )


def single_markers(folder: Path, tokenizer: PreTrainedTokenizerBase, settings: LateInteractionSettings) -> None:
    """Registers the markers before texts as single tokens, for older folders and for new models with `[…]` prompts.

    The tokenizers in folders of sentence-transformers and rankpo already contain these tokens.
    """
    if older := legacy.markers(folder):
        legacy.register(tokenizer, older)
    elif saved_kind(folder) != KIND:
        prompts = (settings.query_prompt, settings.passage_prompt)
        legacy.register(tokenizer, [prompt for prompt in prompts if legacy.MARKER.fullmatch(prompt)])


def projection_folders(folder: Path) -> list[Path]:
    """Returns the folders of the Dense layers on token vectors, in order; [] for a folder of another kind."""
    if not (folder / GENERAL).exists() or saved_kind(folder) != KIND:
        return []
    return [module.folder for module in read_modules(folder) if module.name == "Dense"]


def inline_dim(folder: Path) -> int | None:
    """Dimensions of the projection that Stanford ColBERT stores with the encoder's weights; None without one."""
    found = inline_tensor(folder, INLINE)
    return None if found is None else int(found.shape[0])


def read_projection(folder: Path, layers: nn.ModuleList) -> None:
    """Reads the weights of the projection, if the folder has one. Raises ConfigError if its sizes differ."""
    folders = projection_folders(folder)
    inline = inline_tensor(folder, INLINE) if is_stanford(folder) else None
    count = len(folders) if inline is None else 1
    if count and count != len(layers):
        raise ConfigError(
            [f"{folder} holds {count} projection layers, but model.dim and model.layers define {len(layers)}"]
        )
    if inline is None:
        if folders:
            read_weights(layers, folders)
        return
    (layer,) = layers
    weight = layer.state_dict()["linear.weight"]
    if weight.shape != inline.shape:
        raise ConfigError([f"model.dim={len(weight)}, but the projection of {folder} gives {len(inline)} dimensions"])
    layer.load_state_dict({"linear.weight": inline.float()})
