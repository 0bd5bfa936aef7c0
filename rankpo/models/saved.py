"""Saved folders: of which kind a folder is and which settings it states, read without any library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankpo.models.settings import Settings

RECORD = "rankpo.json"  # in every folder that rankpo writes: kind, settings, and what the model was trained on
OLD_RERANKER_RECORD = "reranker.json"  # the settings of rerankers that versions before this one wrote

AnySettings = TypeVar("AnySettings", bound=Settings)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file. Raises ValueError naming the file for other contents."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def saved_kind(folder: Path) -> str:
    """The kind of model that a folder holds: as rankpo.json states it, else by its head and files.

    A folder with a classification head is a reranker, a language model without sentence-transformers' files a
    causal_lm; all others are embedding models.
    """
    if record := read_json(folder / RECORD):
        return _kind_of(record, folder)
    if has_classification_head(folder):
        return "reranker"
    if (folder / "modules.json").exists():
        general = read_json(folder / "config_sentence_transformers.json")
        return "reranker" if general.get("model_type") == "CrossEncoder" else "embedding"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in _heads(folder)):
        return "causal_lm"
    return "embedding"


def saved_class(folder: Path) -> str | None:
    """The class of a kind that another package defines, as rankpo.json states it; None for kinds of ours."""
    found = read_json(folder / RECORD).get("kind_class")
    return None if found is None else str(found)


def _kind_of(record: Mapping[str, Any], folder: Path) -> str:
    if not isinstance(record.get("kind"), str):
        raise ValueError(f"{folder / RECORD} does not state the kind of the model")
    return str(record["kind"])


def has_classification_head(folder: Path) -> bool:
    """Whether the folder's weights are those of a `*ForSequenceClassification` of transformers."""
    return any(name.endswith("ForSequenceClassification") for name in _heads(folder))


def _heads(folder: Path) -> list[str]:
    return read_json(folder / "config.json").get("architectures") or []


def settings_of_kind(folder: Path, kind: str, settings: type[AnySettings]) -> AnySettings | None:
    """The settings that rankpo.json states, or None in a folder that rankpo did not write.

    Raises ValueError for a folder of another kind.
    """
    record = read_json(folder / RECORD)
    if not record:
        return None
    if (found := _kind_of(record, folder)) != kind:
        raise ValueError(f"{folder} holds a model of kind {found}, not {kind}; add kind={found}")
    return settings.from_json(record["settings"], str(folder / RECORD))
