"""Interpolation of the weights of two models of one architecture, and conversion to another precision."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankpo.models.saved import read_json
from rankpo.storage.folders import MANIFEST, written_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER = "adapter"
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")  # The index of a layer in a weight's name.


class InterpolationError(RuntimeError):
    """Raised for models that cannot be interpolated, and for weights that a conversion changes."""


@dataclass(frozen=True)
class Shared:
    """Names of weights of two models. mixed: floating-point weights in both. only: names in one of the models."""

    mixed: tuple[str, ...]
    only: tuple[str, ...]


def shared_names(start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Shared:
    """Compares the names of two models. Raises InterpolationError for different shapes or no common name."""
    both = [name for name, tensor in trained.items() if name in start and tensor.is_floating_point()]
    for name in both:
        if start[name].shape != trained[name].shape:
            shapes = f"{tuple(start[name].shape)} and {tuple(trained[name].shape)}"
            raise InterpolationError(
                f"{name} has the shapes {shapes}; only models of one architecture can be interpolated"
            )
    if not both:
        raise InterpolationError(
            "the two models have no weight name in common; set task.start to a model of the same architecture"
        )
    return Shared(tuple(both), tuple(sorted(set(start) ^ set(trained))))


def interpolate(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Returns (1 - α)·start + α·trained for weights in both models, else the trained weight; in float32.

    WiSE-FT, https://arxiv.org/abs/2109.01903 eq. 1: α = 0 is the start, 1 the trained model.
    """
    mixed = set(shared_names(start, trained).mixed)
    return {
        name: torch.lerp(start[name].float(), tensor.float(), alpha) if name in mixed else tensor
        for name, tensor in trained.items()
    }


def interpolate_by_layers(
    start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alphas: Sequence[float]
) -> dict[str, Tensor]:
    """`interpolate` with an α for each group of layers, from the first layers to the last; see `layer_groups`."""
    groups = layer_groups(trained, len(alphas))
    mixed: dict[str, Tensor] = {}
    for number, alpha in enumerate(alphas):
        own = {name: tensor for name, tensor in trained.items() if groups[name] == number}
        if own:
            shared_names(start, trained)  # Raises for weights of different shapes.
            both = {name: start[name] for name in own if name in start}
            mixed.update(interpolate(both, own, alpha) if both else own)
    return {name: mixed[name] for name in trained}


def layer_groups(names: Iterable[str], count: int) -> dict[str, int]:
    """The group, from 0 to count - 1, of each weight: consecutive layers of about equal number.

    Embeddings belong to the first group, and weights after the layers, such as a head, to the last. Raises
    InterpolationError if there are fewer layers than groups.
    """
    found = {name: LAYER.search(name) for name in names}
    layers = {name: int(match.group(1)) for name, match in found.items() if match}
    depth = max(layers.values(), default=-1) + 1
    if count > max(1, depth):
        raise InterpolationError(f"{count} groups of layers were requested, but the model has only {depth} layers")
    outside = {name: 0 if "embed" in name or "wte" in name or "wpe" in name else count - 1 for name in found}
    return {name: layers[name] * count // depth if name in layers else outside[name] for name in found}


def mean_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights: a uniform soup, https://arxiv.org/abs/2203.05482 section 2.

    Sums are in float64, so that the order of the models does not matter. Integers, such as counts of updates, come
    from the last model. Only one model is in memory at a time. Raises InterpolationError for models whose weights differ in
    name or shape, and for an empty iterable.
    """
    total: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    count = 0
    for state in states:
        if count and state.keys() != total.keys():
            odd = ", ".join(sorted(state.keys() ^ total.keys())[:5])
            raise InterpolationError(
                f"model {count + 1} of the soup and the first do not have the same weights; these are in one only: {odd}"
            )
        for name, tensor in state.items():
            if count and total[name].shape != tensor.shape:
                shapes = f"{tuple(total[name].shape)} and {tuple(tensor.shape)}"
                raise InterpolationError(
                    f"{name} has the shapes {shapes}; only models of one architecture can be averaged"
                )
            wide = tensor.double() if tensor.is_floating_point() else tensor
            total[name] = total[name] + wide if count and tensor.is_floating_point() else wide
        last, count = state, count + 1
    if not count:
        raise InterpolationError("a soup needs at least one model, got none")
    return {
        name: (tensor / count).to(last[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Rounds floating-point weights to values of `dtype`, stored as float32.

    Raises InterpolationError for a weight that overflows: the largest float16 is 65,504.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                rounded = tensor.to(dtype)
                if not bool(torch.isfinite(rounded).all()):
                    raise InterpolationError(f"{name} overflows in {dtype}; export as bfloat16 instead")
                tensor.copy_(rounded)


def cast_folder(source: Path, target: Path, dtype: str) -> None:
    """Copies a folder of a saved model with its weights in `dtype`; adapters are not copied.

    Call `round_weights` first, so that the conversion is exact. Raises InterpolationError for a weight that changes.
    """
    with written_whole(target) as folder:
        for path in sorted(source.rglob("*")):
            place = path.relative_to(source)
            if place.parts[0] in (ADAPTER, MANIFEST):
                continue
            copy = folder / place
            if path.is_dir():
                copy.mkdir()
            elif len(place.parts) == 1 and path.suffix == ".safetensors":
                _cast_file(path, copy, DTYPES[dtype])
            else:
                shutil.copy(path, copy)
        config = read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")


def _cast_file(source: Path, target: Path, dtype: torch.dtype) -> None:
    tensors = {}
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 (it cannot be iterated itself)
            tensor = file.get_tensor(name)
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if not torch.equal(tensors[name].to(tensor.dtype), tensor):
                raise InterpolationError(f"{source}: {name} is not exactly representable in {dtype}")
    save_file(tensors, target, metadata=metadata)
