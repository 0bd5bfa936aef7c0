"""Weights of sparse models: the masked-language head of a checkpoint, and the weights of static queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from rankpo.models.loading import LoadingError
from rankpo.models.sparse.reading import static_folder
from rankpo.models.tensors import read_tensors

if TYPE_CHECKING:
    from rankpo.models.sparse.model import SparseModel

WEIGHT = "weight"  # The tensor of a SparseStaticEmbedding.


class MaskedFamily:
    """AutoModelForMaskedLM with a check for a missing head.

    new_head: whether the checkpoint may lack the head. missing: the names of weights that the checkpoint lacks, known
    after loading.
    """

    def __init__(self, origin: str, new_head: bool) -> None:
        self.origin, self.new_head = origin, new_head
        self.missing: list[str] = []

    def from_pretrained(self, path: str, **arguments: object) -> tuple[PreTrainedModel, dict[str, object]]:
        """Returns the model and transformers' report on loading. Raises LoadingError for a missing head."""
        model, found = AutoModelForMaskedLM.from_pretrained(path, **arguments)
        body = {f"{model.base_model_prefix}.{name}" for name in model.base_model.state_dict()}
        self.missing = [name for name in sorted(found["missing_keys"]) if name not in body]
        if self.missing and not self.new_head:
            raise LoadingError(
                f"{self.origin} has no masked-language head ({self.missing[0]} is missing), which a sparse model "
                "needs; choose a checkpoint with one, such as distilbert/distilbert-base-uncased, or set "
                "model.new_head=true"
            )
        return model, {**found, "missing_keys": [name for name in found["missing_keys"] if name in body]}

    def from_config(self, config: object, **arguments: object) -> PreTrainedModel:
        return AutoModelForMaskedLM.from_config(config, **arguments)


def read_query_weights(model: SparseModel, file: str | None, folder: Path | None) -> None:
    """Sets the weights of static queries from a JSON file, else from a saved folder, else leaves them 1.

    Raises LoadingError for files whose weights are not those of the vocabulary.
    """
    if model.query_weights is None:
        return
    if file is not None:
        weights = _of_json(Path(file), model)
    elif folder is not None and (place := static_folder(folder)) is not None:
        weights = _of_folder(place, model)
    else:
        return
    with torch.no_grad():
        model.query_weights.copy_(weights)


def _of_json(path: Path, model: SparseModel) -> Tensor:
    """Tokens that the file does not name get 0, as in sentence-transformers."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadingError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, int | float) for value in found.values()):
        raise LoadingError(f"{path} must hold a JSON object of tokens and numbers")
    vocabulary = model.tokenizer.get_vocab()
    weights = torch.zeros(model.dim)
    known = {vocabulary[token]: float(value) for token, value in found.items() if token in vocabulary}
    if not known:
        raise LoadingError(f"{path} names no token of the model's vocabulary")
    weights[list(known)] = torch.tensor(list(known.values()))
    return weights


def _of_folder(folder: Path, model: SparseModel) -> Tensor:
    path = folder / "model.safetensors"
    if not path.exists():
        raise LoadingError(f"{folder} has no model.safetensors; pickled weights (*.bin) are not opened")
    found = read_tensors(path)
    if set(found) != {WEIGHT} or found[WEIGHT].shape != (model.dim,):
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        raise LoadingError(f"{path} holds {shapes}; static queries need {WEIGHT} of ({model.dim},)")
    return found[WEIGHT].float()
