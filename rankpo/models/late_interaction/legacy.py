"""Readers of older late-interaction folders: PyLate up to 3, and Stanford ColBERT with artifact.metadata."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AddedToken

from rankpo.errors import ConfigError
from rankpo.models.late_interaction.settings import INLINE
from rankpo.models.saved import Stated, is_stanford, read_json
from rankpo.models.st_folders import GENERAL, Module, check_keys, length_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METADATA = "artifact.metadata"
PYLATE_TYPE = "ColBERT"
PYLATE_KEYS = (
    "query_prefix",
    "document_prefix",
    "query_length",
    "document_length",
    "query_expansion",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "skiplist_words",
)
EXPANSION_KEYS = ("strategy", "attend", "token", "length")
DEFAULT_LENGTH = 32  # Tokens of a query in ColBERT's own settings.
METADATA_VALUES = {"similarity": "cosine", "interaction": "colbert"}  # The supported values in artifact.metadata.
MARKER = re.compile(r"\[[^\]\s]+\] ?")


def is_pylate(general: Mapping[str, object]) -> bool:
    """Whether config_sentence_transformers.json has keys of PyLate up to 3."""
    return general.get("model_type") == PYLATE_TYPE or any(name in general for name in PYLATE_KEYS)


def knobs(general: Mapping[str, object]) -> dict[str, object]:
    """Converts PyLate's keys to those of a Transformer: query_length, document_length, query_expansion."""
    if not any(name in general for name in PYLATE_KEYS):
        return {}
    found = {name: general[name] for name in ("query_length", "document_length") if general.get(name) is not None}
    if "query_expansion" in general:
        found["query_expansion"] = general["query_expansion"]
    elif general.get("do_query_expansion") is not False:
        attend = general.get("attend_to_expansion_tokens", general.get("attend_to_mask_tokens"))
        length = found.pop("query_length", None) or DEFAULT_LENGTH
        found["query_expansion"] = {"strategy": "fixed", "attend": bool(attend), "length": length}
    return found


def encoding(found: Mapping[str, object], longest: int | None) -> dict[str, object]:
    """Returns rankpo's lengths and expansion. found: keys of the Transformer. longest: its maximum length, or None.

    Raises ConfigError for an expansion with unknown keys or values.
    """
    values: dict[str, object] = {}
    for name, key in (("query_max_length", "query_length"), ("passage_max_length", "document_length")):
        stated = found.get(key) or longest
        if stated is not None:
            values[name] = int(str(stated))
    expansion = found.get("query_expansion")
    if expansion is None:
        return {**values, "query_expansion": "none"}
    if not isinstance(expansion, Mapping):
        raise ConfigError([f"query_expansion={expansion!r} must be null or have the keys {', '.join(EXPANSION_KEYS)}"])
    check_keys(Path("query_expansion"), expansion, EXPANSION_KEYS)
    strategy, length = expansion.get("strategy"), expansion.get("length")
    if strategy not in ("fixed", "min") or not isinstance(length, int):
        raise ConfigError(
            [
                f"query_expansion: strategy={strategy!r}, length={length!r}; strategy must be fixed or min, and length a number"
            ]
        )
    sized = {"query_max_length": length} if strategy == "fixed" else {"expansion_length": length}
    attends, token = bool(expansion.get("attend")), expansion.get("token")
    more = {"query_expansion": strategy, "attend_to_expansion": attends, "expansion_token": token}
    return {**values, **sized, **more}


def with_prefixes(general: Mapping[str, object]) -> dict[str, object]:
    """Returns the prompts, each preceded by PyLate's marker."""
    stated = general.get("prompts")
    prompts = dict(stated) if isinstance(stated, Mapping) else {}
    for key, role in (("query_prefix", "query"), ("document_prefix", "document")):
        if key in general:
            prefix = str(general[key] or "")
            prompts[role] = prefix + str(prompts.get(role) or "").removeprefix(prefix)
    return prompts


def skipped(general: Mapping[str, object]) -> tuple[str, ...]:
    """Returns the skip list of a PyLate folder; without one, punctuation."""
    words = general.get("skiplist_words")
    return tuple(string.punctuation) if not isinstance(words, list) else tuple(map(str, words))


def read_stanford(folder: Path, dim: int | None) -> Stated:
    """Returns the settings in artifact.metadata, or Stanford ColBERT's defaults. Training keys are ignored."""
    metadata = read_json(folder / METADATA)
    if dim is None:
        raise ConfigError(
            [f"{folder} is a folder of Stanford ColBERT, but its weights lack the tensor {INLINE} of the projection"]
        )
    for key, allowed in METADATA_VALUES.items():
        if metadata.get(key) not in (None, allowed):
            raise ConfigError(
                [f"{folder / METADATA}: {key}={metadata[key]!r} is not supported; rankpo needs {key}={allowed}"]
            )
    longest = length_of(Module("Transformer", folder, {}))
    values: dict[str, object] = {
        "dim": dim,
        "layers": (),
        "normalize": True,
        "normalize_scores": False,
        "query_prompt": _marker(metadata, "query_token_id", "[unused0]"),
        "passage_prompt": _marker(metadata, "doc_token_id", "[unused1]"),
        "query_max_length": metadata.get("query_maxlen") or DEFAULT_LENGTH,
        "query_expansion": "fixed",
        "expansion_length": None,
        "attend_to_expansion": bool(metadata.get("attend_to_mask_tokens")),
        "skip": tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
        "skip_queries": False,
    }
    if (length := metadata.get("doc_maxlen") or longest) is not None:
        values["passage_max_length"] = length
    return Stated(values=values, source=METADATA if metadata else "the defaults of Stanford ColBERT")


def _marker(metadata: Mapping[str, object], key: str, default: str) -> str:
    return f"{metadata.get(key) or default} "


def markers(folder: Path) -> tuple[str, ...]:
    """The markers that PyLate or Stanford ColBERT inserted as one token each."""
    if is_stanford(folder):
        metadata = read_json(folder / METADATA)
        return _marker(metadata, "query_token_id", "[unused0]"), _marker(metadata, "doc_token_id", "[unused1]")
    general = read_json(folder / GENERAL)
    return tuple(str(general[key]) for key in ("query_prefix", "document_prefix") if general.get(key))


def register(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Registers markers in the vocabulary as special tokens, so that each is one token instead of several pieces."""
    known = {*tokenizer.get_vocab(), *tokenizer.get_added_vocab()}
    for prompt in prompts:
        names = [name for name in (prompt, prompt.partition(" ")[0]) if name in known]
        if names and tokenizer.tokenize(names[0]) != [names[0]]:
            token = AddedToken(names[0], normalized=False, special=True)
            tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
