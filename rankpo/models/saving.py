"""Saving of models of all kinds as folders that other libraries load with the same outputs.

The folder gets its final name only after a reload has reproduced the model's outputs.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
import transformers

from rankpo.models.attention import plain_attention
from rankpo.models.base import RankingModel
from rankpo.models.model_card import public_name
from rankpo.models.older_transformers import for_older_readers
from rankpo.models.saved import RECORD
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = TypeVar("Model", bound=RankingModel)


class ReadsPrompts(Protocol):
    """Settings with the prompts of both roles."""

    @property
    def query_prompt(self) -> str: ...
    @property
    def passage_prompt(self) -> str: ...


class ExportError(RuntimeError):
    """Raised if other libraries would compute different outputs from a folder."""


class FolderFormat(ABC, Generic[Model]):
    """Contents of a kind's folder besides weights and tokenizer, and its comparison with the model.

    kind: the name of the kind in rankpo.json. output: the compared quantity, for messages. tolerance: the largest allowed difference.
    """

    kind: str
    output: str
    tolerance: float = 1e-4

    def weights(self, model: Model) -> PreTrainedModel:
        """Returns the transformers model to save; a copy receives merged adapters."""
        return merged(model)

    def tokenizer(self, model: Model) -> PreTrainedTokenizerBase:
        """Returns the tokenizer to save."""
        return model.tokenizer

    def settings(self, model: Model) -> Mapping[str, object]:
        """The settings of rankpo.json."""
        return dict(model.settings.to_json())

    def record(self, model: Model) -> Mapping[str, object]:
        """Further entries of rankpo.json."""
        return {}

    def beside(self, folder: Path, model: Model) -> None:
        """Writes further files."""

    def beside_adapters(self, folder: Path, model: Model) -> None:
        """Writes further files into adapter/."""

    @abstractmethod
    def card(self, model: Model, description: Mapping[str, object]) -> str:
        """The README.md, in Markdown with the head that model hubs read."""

    @abstractmethod
    def difference(self, folder: Path, model: Model) -> float:
        """Returns the largest difference between outputs of the model and of the folder, loaded by another library."""

    def allowed(self, model: Model) -> float:
        """Returns the largest allowed difference for this model."""
        return self.tolerance

    hint: str = ""  # Advice for folders that differ.


def save(folder: Path, model: Model, layout: FolderFormat[Model], description: Mapping[str, Any]) -> float:
    """Writes merged weights, tokenizer, rankpo.json and README.md, and new adapters in adapter/; then loads the folder
    again and compares.

    description: loss, data, metrics and versions for rankpo.json and the card; local paths in it are reduced
    to their last part. Earlier contents of the folder stay until the comparison succeeds. Returns the largest
    difference. Raises ExportError for a larger difference than the kind allows.
    """
    description = without_paths({**description, "base_model": public_name(description.get("base_model"))})
    with written_whole(folder) as temporary:
        weights = layout.weights(model)
        tokenizer = layout.tokenizer(model)
        with plain_attention(weights, model.packed):
            weights.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for_older_readers(temporary)
        layout.beside(temporary, model)
        own = {"kind": layout.kind, "format": 1, "settings": layout.settings(model), **layout.record(model)}
        write_json(temporary / RECORD, {**own, **description})
        (temporary / "README.md").write_text(layout.card(model, description), encoding="utf-8")
        if model.has_adapters:
            _save_adapters(temporary / "adapter", model, layout, tokenizer)
        difference, allowed = layout.difference(temporary, model), layout.allowed(model)
        if not difference <= allowed:
            raise ExportError(
                f"{folder}: after a reload, {layout.output} differ by {difference:.2e}, more than {allowed:.0e}{layout.hint}"
            )
        return difference


def _save_adapters(folder: Path, model: Model, layout: FolderFormat[Model], tokenizer: PreTrainedTokenizerBase) -> None:
    adapters: Any = model.backbone
    adapters.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card has empty headings and a local path.
    tokenizer.save_pretrained(folder)
    layout.beside_adapters(folder, model)


def merged(model: RankingModel) -> PreTrainedModel:
    """Returns the plain backbone; with adapters, a merged copy, so that the trained model stays unchanged."""
    if not model.has_adapters:
        return model.base
    adapters: Any = copy.deepcopy(model.backbone)
    return adapters.merge_and_unload()


def without_paths(value: Any) -> Any:
    """Returns the value with absolute paths and paths of existing folders reduced to their last part."""
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    is_path = isinstance(value, str) and (value.startswith(("/", "./", "../", "~/")) or _is_folder(value))
    return Path(value).name if is_path else value


def _is_folder(value: str) -> bool:
    return "/" in value and len(value) < 1024 and "\n" not in value and Path(value).exists()


def sentence_transformers_config(
    model_type: str, release: str, settings: ReadsPrompts, similarity: str, **more: object
) -> dict[str, object]:
    """The contents of config_sentence_transformers.json.

    model_type: sentence-transformers' class. release: its oldest release that reads the folder. more: further keys.
    """
    return {
        "model_type": model_type,
        "__version__": {
            "sentence_transformers": release,
            "transformers": transformers.__version__,
            "pytorch": torch.__version__.split("+")[0],
        },
        "prompts": {"query": settings.query_prompt, "document": settings.passage_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": similarity,
        **more,
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
