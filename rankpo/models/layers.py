"""Layers after the hidden states of a model: Dense, LayerNorm, Normalize and Dropout of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from rankpo.models.advice import advised
from rankpo.models.layer_keys import LAYER_KEYS, Keys
from rankpo.models.loading import LoadingError
from rankpo.models.tensors import read_tensors

FILE = "model.safetensors"


class Dense(nn.Module):
    """activation(W x + b), with `residual` plus x, or plus R x if the sizes differ. Weight names match theirs."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        sizes = keys["in_features"], keys["out_features"]
        self.linear = nn.Linear(*sizes, bias=keys["bias"])
        self.activation: nn.Module = getattr(nn, keys["activation"])()
        self.adds = bool(keys["residual"])
        self.residual = nn.Linear(*sizes, bias=False) if self.adds and sizes[0] != sizes[1] else None

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.activation(self.linear(vectors))
        if not self.adds:
            return made
        return made + (vectors if self.residual is None else self.residual(vectors))


class Norm(nn.Module):
    """Layer normalisation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, vectors: Tensor) -> Tensor:
        normed: Tensor = self.norm(vectors)
        return normed


class UnitLength(nn.Module):
    """Scales vectors to length 1; zero vectors stay zero."""

    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1)


def make_layers(layers: Sequence[Keys]) -> nn.ModuleList:
    """Returns layers with random weights from the run's seed. layers: with sizes, from `layer_keys.sized_layers`."""
    made: list[nn.Module] = []
    for keys in layers:
        if keys["type"] == "Dense":
            made.append(Dense(keys))
        elif keys["type"] == "LayerNorm":
            made.append(Norm(keys["dimension"]))
        else:
            made.append(UnitLength() if keys["type"] == "Normalize" else nn.Dropout(keys["dropout"]))
    return nn.ModuleList(made)


def read_weights(layers: nn.ModuleList, folders: Sequence[Path]) -> None:
    """Reads the weights of saved layers, each from its own folder.

    Raises LoadingError for a folder without safetensors, and for missing and unexpected tensors.
    """
    for layer, folder in zip(layers, folders, strict=True):
        wanted = layer.state_dict()
        if not wanted:
            continue
        if not (folder / FILE).exists():
            raise LoadingError(
                f"{folder} has no {FILE}; rankpo does not open pickled weights (*.bin), since they can run code. If you "
                "trust the model, load it in sentence-transformers and call save_pretrained"
            )
        found = read_tensors(folder / FILE)
        if wrong := sorted(set(wanted) ^ set(found)):
            raise LoadingError(f"{folder / FILE}: the tensors {', '.join(wrong)} are missing or unexpected")
        if sizes := [name for name in wanted if wanted[name].shape != found[name].shape]:
            raise LoadingError(f"{folder / FILE}: the size of {', '.join(sizes)} differs from config.json")
        layer.load_state_dict({name: tensor.float() for name, tensor in found.items()})


def inline_tensor(folder: Path, name: str) -> Tensor | None:
    """Returns a tensor by name from the folder's safetensors files, or None."""
    for path in sorted(folder.glob("*.safetensors")):
        with advised(str(folder), str(folder)), safe_open(path, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                found: Tensor = opened.get_tensor(name)
                return found
    return None


def write_weights(layer: nn.Module, folder: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in layer.state_dict().items()}
    if weights:
        save_file(weights, folder / FILE)


def cut_layer(width: int, dim: int) -> Dense:
    """A linear layer that keeps the first `dim` of `width` dimensions."""
    keys = {"in_features": width, "out_features": dim, "bias": False, "activation": "Identity", "residual": False}
    layer = Dense(keys)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.eye(dim, width))
    return layer


def their_keys(keys: Keys) -> Keys:
    """Returns a layer's config.json, without keys at their defaults, since older releases reject unknown keys."""
    ours = {own: name for name, own in LAYER_KEYS[keys["type"]].items()}
    found = {ours[name]: value for name, value in keys.items() if name != "type"}
    if not found.get("use_residual", True):
        del found["use_residual"]
    if "activation_function" in found:
        activation = getattr(nn, found["activation_function"])
        found["activation_function"] = f"{activation.__module__}.{activation.__name__}"
    return found
