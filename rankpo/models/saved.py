"""Saved folders: detection of the kind and reading of the settings, without other libraries."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rankpo.models.settings import Settings

RECORD = "rankpo.json"  # In every folder of rankpo: kind, settings and training data.
KINDS_OF_TYPES = {  # model_type of sentence-transformers and PyLate
    "CrossEncoder": "reranker",
    "MultiVectorEncoder": "late_interaction",
    "SparseEncoder": "sparse",
    "ColBERT": "late_interaction",
}
OLD_RERANKER_RECORD = "reranker.json"  # Settings of rerankers in folders of older versions.


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Settings of a kind that a folder states.

    values: keys of the kind's settings. source: the files with these settings, for messages. notes: lines about contents
    of the folder that rankpo does not use. lower_case: whether texts are lower-cased before tokenisation.
    """

    values: Mapping[str, object]
    source: str
    notes: tuple[str, ...] = ()
    lower_case: bool = False


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if there is no file. Raises ValueError with the file for other contents."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_list(path: Path) -> list[dict[str, object]]:
    """Returns the list of objects in a JSON file. Raises ValueError with the file for other contents."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{path} must hold a list of JSON objects")
    return value


def saved_kind(folder: Path) -> str:
    """Returns the kind of a folder's model, from rankpo.json, or else from its head and files.

    A folder with a classification head is a reranker. A language model without files of sentence-transformers is a
    causal_lm. Files of sentence-transformers name their class. All other folders are embedding models.
    """
    if record := read_json(folder / RECORD):
        return _kind_of(record, folder)
    if has_classification_head(folder):
        return "reranker"
    if (folder / "modules.json").exists():
        return KINDS_OF_TYPES.get(str(_model_type(folder)), "embedding")
    if is_stanford(folder):
        return "late_interaction"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in _heads(folder)):
        return "causal_lm"
    return "embedding"


def saved_class(folder: Path) -> str | None:
    """Returns the class in rankpo.json for a kind of another package; None for rankpo's own kinds."""
    found = read_json(folder / RECORD).get("kind_class")
    return None if found is None else str(found)


def _kind_of(record: Mapping[str, object], folder: Path) -> str:
    if not isinstance(record.get("kind"), str):
        raise ValueError(f"{folder / RECORD} does not state the kind of the model")
    return str(record["kind"])


def has_classification_head(folder: Path) -> bool:
    """Whether the folder's weights are those of a `*ForSequenceClassification` of transformers."""
    return any(name.endswith("ForSequenceClassification") for name in _heads(folder))


def is_stanford(folder: Path) -> bool:
    """Whether a folder is in Stanford ColBERT's format, without files of sentence-transformers or PyLate."""
    found = "HF_ColBERT" in _heads(folder) or (folder / "artifact.metadata").exists()
    return found and _model_type(folder) is None


def _model_type(folder: Path) -> object:
    return read_json(folder / "config_sentence_transformers.json").get("model_type")


def _heads(folder: Path) -> list[str]:
    return read_json(folder / "config.json").get("architectures") or []


def own_statement(folder: Path, kinds: Collection[str], settings: type[Settings]) -> Stated | None:
    """Returns the settings in rankpo.json, or None for a folder without it.

    kinds: the accepted kinds. Raises ValueError for a folder of another kind, and for unknown settings.
    """
    record = read_json(folder / RECORD)
    if not record:
        return None
    if (found := _kind_of(record, folder)) not in kinds:
        raise ValueError(f"{folder} holds a model of kind {found}, not {next(iter(kinds))}; add kind={found}")
    return statement_of(settings.from_json(record["settings"], str(folder / RECORD)), RECORD)


def statement_of(settings: Settings, source: str) -> Stated:
    """Returns all values of saved settings as a statement."""
    return Stated(values={item.name: getattr(settings, item.name) for item in fields(settings)}, source=source)
