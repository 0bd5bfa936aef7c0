"""Routes of queries and passages in sentence-transformers' folders of models with a prior, built from its modules.

sentence-transformers has no module that concatenates two vectors. However, `Pooling` with the modes cls and mean
concatenates `cls_token_embeddings`, in which a module can store any vector, and the mean of `token_embeddings`. The
route of passages therefore stores the finished vector there. For each layer, `WeightedLayerPooling` makes the layer's
states the token embeddings, `Pooling` appends their mean, and a `Dense` reduces it to the prior and adds the prior of
the previous layers. The route of queries is a `Dense` that appends 1.
sentence-transformers 6.2 computes the same vectors (tests/models/test_prior.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from rankpo.models.embedding.prior import Prior
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.layers import FILE
from rankpo.models.saving import write_json

CLASSES = "sentence_transformers.models"
PoolingModule: TypeAlias = tuple[str, Mapping[str, object], Mapping[str, Tensor]]  # Its name, keys and tensors.
STORED, VECTOR = "cls_token_embeddings", "sentence_embedding"


def write_routes(folder: Path, prior: Prior, settings: EmbeddingSettings, dim: int, depth: int) -> None:
    """Writes the files of a `Router`. dim: of the vector without the prior. depth: layers of the model."""
    routes = Routes(folder)
    append_one = torch.eye(dim + 1)[:, :dim].contiguous()
    routes.dense("query", append_one, VECTOR, bias=torch.eye(dim + 1)[dim].contiguous())
    routes.dense("document", torch.eye(dim), STORED)
    weights = prior.weight.detach().cpu().float() * settings.prior_weight
    for number, (layer, weight) in enumerate(zip(prior.layers, weights, strict=True)):
        routes.layer(layer, depth, len(weight))
        routes.pooling(len(weight), settings.include_prompt)
        size = dim if number == 0 else dim + 1  # Before the first layer, the vector has no prior.
        joined = torch.zeros(dim + 1, size + len(weight))
        joined[:size, :size] = torch.eye(size)
        joined[dim, size:] = weight
        routes.dense("document", joined, VECTOR if number == len(weights) - 1 else STORED)
    routes.write()


def pooling_modules(
    settings: EmbeddingSettings, width: int, depth: int, keys: Mapping[str, object]
) -> list[PoolingModule]:
    """Names, keys and tensors of the modules that pool: one, or those that join the means of several layers.

    keys: of the pooling. Several layers are joined as in the route of passages: what is joined so far is stored, and stands
    before the mean of the next layer.
    """
    modules: list[PoolingModule] = []
    for number, layer in enumerate(settings.pooled_layers):
        if number:
            size = number * width
            modules.append(("Dense", dense_keys(size, size, STORED, bias=False), {"linear.weight": torch.eye(size)}))
        modules.append(("WeightedLayerPooling", *one_layer(layer, depth, width)))
        modules.append(("Pooling", joined_keys(width, settings.include_prompt) if number else keys, {}))
    return modules or [("Pooling", keys, {})]


def dense_keys(inputs: int, outputs: int, output: str, bias: bool) -> dict[str, object]:
    """Keys of a linear layer on the vector, which stores its result under the name `output`."""
    return {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": VECTOR,
        "module_output_name": output,
    }


def one_layer(number: int, depth: int, width: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Keys and tensors of a module that makes the states of one layer the token embeddings."""
    keys: dict[str, object] = {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": depth}
    return keys, {"layer_weights": torch.eye(depth + 1)[number].contiguous()}


def joined_keys(width: int, include_prompt: bool) -> dict[str, object]:
    """Keys of a pooling that gives the stored vector with the mean of the token embeddings behind it."""
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    return {"word_embedding_dimension": width, **modes, "include_prompt": include_prompt}


def write_module(folder: Path, keys: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    write_json(folder / "config.json", keys)
    if tensors:
        save_file(dict(tensors), folder / FILE)


class Routes:
    """The modules of each route, written to consecutive folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.structure: dict[str, list[str]] = {"query": [], "document": []}
        self.types: dict[str, str] = {}

    def dense(self, route: str, weight: Tensor, output: str, bias: Tensor | None = None) -> None:
        """Adds a linear layer on the vector; the result is stored as `output`. weight: [out, in]."""
        keys = dense_keys(weight.shape[1], weight.shape[0], output, bias is not None)
        tensors = {"linear.weight": weight, **({} if bias is None else {"linear.bias": bias})}
        self._add(route, "Dense", keys, tensors)

    def layer(self, number: int, depth: int, width: int) -> None:
        """Adds a module that makes the states of one layer the token embeddings."""
        self._add("document", "WeightedLayerPooling", *one_layer(number, depth, width))

    def pooling(self, width: int, include_prompt: bool) -> None:
        """Adds a module that appends the mean of the token embeddings to the stored vector."""
        self._add("document", "Pooling", joined_keys(width, include_prompt), {})

    def _add(self, route: str, name: str, keys: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        place = f"{route}_{len(self.structure[route])}_{name}"
        self.structure[route].append(place)
        self.types[place] = f"{CLASSES}.{name}"
        (self.folder / place).mkdir()
        write_module(self.folder / place, keys, tensors)

    def write(self) -> None:
        """Writes the list of modules. A text without a role is a passage."""
        parameters = {"default_route": "document", "allow_empty_key": True}
        record = {"types": self.types, "structure": self.structure, "parameters": parameters}
        write_json(self.folder / "router_config.json", record)
