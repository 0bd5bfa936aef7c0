"""Prior of a passage: a score that does not depend on the query, linear in pooled hidden states of chosen layers.

With a prior, the score of a query q and a passage p is s(q, p) + λ·t(p). The vector of a text has one more dimension, which
holds 1 for a query and λ·t(p) for a passage, so that the score is an inner product and every vector search supports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankpo.errors import ConfigError
from rankpo.models.loading import LoadingError
from rankpo.models.tensors import read_tensors

FILE = "prior.safetensors"


class Prior(nn.Module):
    """t(p) = Σ over layers of w_l · m_l, where m_l is the mean over tokens of the hidden states of layer l.

    weight: [K, H], one row for each layer. It starts at 0, so that a new prior does not change scores. There is no
    bias, since a constant does not change the order of passages.
    """

    def __init__(self, layers: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.weight = nn.Parameter(torch.zeros(len(layers), width))

    def forward(self, features: Tensor) -> Tensor:
        """[N] values of t. features: [N, K·H], the means of the layers, one layer after another."""
        values: Tensor = features @ self.weight.flatten()
        return values


def make_prior(layers: Sequence[int], width: int, depth: int) -> Prior:
    """Returns a new prior. depth: the number of layers of the model.

    Raises ConfigError for a layer that the model does not have.
    """
    check_layers("prior_layers", layers, depth)
    return Prior(layers, width)


def check_layers(key: str, layers: Sequence[int], depth: int) -> None:
    """Raises ConfigError for a layer that the model does not have. key: of the config, under model."""
    if high := [layer for layer in layers if layer > depth]:
        raise ConfigError([f"model.{key}={list(layers)}: the model has layers 0 to {depth}, not {high[0]}"])


def read_prior(prior: Prior, folder: Path) -> None:
    """Reads the weights of a saved prior. Raises LoadingError if they are missing or have other layers or sizes."""
    if not (folder / FILE).exists():
        raise LoadingError(f"{folder} has no {FILE}, but its rankpo.json states a prior; copy the folder again")
    found = read_tensors(folder / FILE)
    if set(found) != {"weight"} or found["weight"].shape != prior.weight.shape:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(found.items()))
        raise LoadingError(
            f"{folder / FILE} has {shapes}, but model.prior_layers={list(prior.layers)} needs weight "
            f"{tuple(prior.weight.shape)}; leave model.prior_layers out to use the layers that the folder was saved with"
        )
    with torch.no_grad():
        prior.weight.copy_(found["weight"].float())


def write_prior(prior: Prior, folder: Path) -> None:
    save_file({"weight": prior.weight.detach().cpu().contiguous()}, folder / FILE)
