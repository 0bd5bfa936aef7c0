"""Keys of the layers after a model's hidden states, in rankpo's settings and in sentence-transformers' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankpo.errors import ConfigError, unknown
from rankpo.models.st_folders import Module, check_keys

LAYERS: Mapping[
    str, Mapping[str, object]
] = {  # Keys of each type of layer and their defaults; None: the value of the previous layer.
    "Dense": {"in_features": None, "out_features": None, "bias": True, "activation": "Tanh", "residual": False},
    "LayerNorm": {"dimension": None},
    "Normalize": {},
    "Dropout": {"dropout": 0.2},
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Softplus", "Mish")
LAYER_KEYS = {  # Keys in a layer's config.json and the corresponding keys of rankpo.
    "Dense": {
        "in_features": "in_features",
        "out_features": "out_features",
        "bias": "bias",
        "activation_function": "activation",
        "use_residual": "residual",
    },
    "LayerNorm": {"dimension": "dimension"},
    "Normalize": {},
    "Dropout": {"dropout": "dropout"},
}
Keys = dict[str, Any]  # The keys of one layer in rankpo's settings.
PLACES = ("module_input_name", "module_output_name")  # The keys for the input and output of a layer.


def checked_layer(layer: Mapping[str, object]) -> Keys:
    """Returns a layer with all its keys. Raises ValueError for an unknown type, key or value."""
    given: Keys = dict(layer)
    kind = given.pop("type", None)
    if kind not in LAYERS:
        raise ValueError(f"layers: type must be one of {', '.join(LAYERS)}, got {kind!r}")
    if strange := [name for name in given if name not in LAYERS[kind]]:
        raise ValueError(f"layers: {unknown(kind, strange[0], LAYERS[kind])}")
    keys = {"type": kind, **LAYERS[kind], **given}
    if kind == "Dense" and not (isinstance(keys["out_features"], int) and keys["out_features"] > 0):
        raise ValueError(f"layers: Dense needs out_features > 0, got {keys['out_features']!r}")
    if kind == "Dense" and keys["activation"] not in ACTIVATIONS:
        raise ValueError(f"layers: {unknown('activation', str(keys['activation']), ACTIVATIONS)}")
    return keys


def sized_layers(layers: Sequence[Keys], size: int) -> tuple[list[Keys], int]:
    """Returns the layers with their sizes, and the size of their output. size: of the input vectors.

    Raises ValueError for layers with incompatible sizes.
    """
    sized = []
    for layer in layers:
        keys = dict(layer)
        for name in ("in_features", "dimension"):
            if name in keys and keys[name] not in (None, size):
                raise ValueError(
                    f"layers: {keys['type']} needs {keys[name]} input dimensions, but the previous layer gives {size}"
                )
            if name in keys:
                keys[name] = size
        size = keys.get("out_features", size)
        sized.append(keys)
    return sized, size


def read_layer(module: Module, place: str) -> Keys:
    """Converts a layer of sentence-transformers to rankpo's keys. place: the only allowed input and output.

    Raises ConfigError with the file for unsupported keys, activations and places.
    """
    check_keys(module.folder / "config.json", module.config, (*LAYER_KEYS[module.name], *PLACES))
    for key in PLACES:
        if module.config.get(key) not in (None, place):
            raise ConfigError([f"{module.folder}: {key}={module.config[key]} is not supported; it must be {place}"])
    keys = {LAYER_KEYS[module.name][name]: value for name, value in module.config.items() if name not in PLACES}
    if module.name == "Dense":
        given = str(keys.get("activation", "torch.nn.modules.activation.Tanh"))
        name = given.rpartition(".")[2]
        if not given.startswith("torch.nn.") or name not in ACTIVATIONS:
            raise ConfigError([unknown(f"{module.folder}: activation_function", given, ACTIVATIONS)])
        keys["activation"] = name
    try:
        return checked_layer({"type": module.name, **keys})
    except ValueError as error:
        raise ConfigError([f"{module.folder}: {error}"]) from error
