"""Keys of the layers behind a model's hidden states, in rankpo's settings and in sentence-transformers' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankpo.errors import ConfigError, unknown
from rankpo.models.st_folders import Module, check_keys

LAYERS: Mapping[
    str, Mapping[str, object]
] = {  # types of layers and their keys with defaults; None: from the layer before
    "Dense": {"in_features": None, "out_features": None, "bias": True, "activation": "Tanh", "residual": False},
    "LayerNorm": {"dimension": None},
    "Normalize": {},
    "Dropout": {"dropout": 0.2},
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Softplus", "Mish")
LAYER_KEYS = {  # keys of a layer's config.json, and ours
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
Keys = dict[str, Any]  # of a layer, in our settings
PLACES = ("module_input_name", "module_output_name")  # what a layer reads and writes


def checked_layer(layer: Mapping[str, object]) -> Keys:
    """A layer with all its keys. Raises ValueError naming a type, key or value that is not known."""
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
    """The layers with their sizes, and the size of the vectors behind them. size: of the vectors in front.

    Raises ValueError for layers that do not fit on each other.
    """
    sized = []
    for layer in layers:
        keys = dict(layer)
        for name in ("in_features", "dimension"):
            if name in keys and keys[name] not in (None, size):
                raise ValueError(f"layers: {keys['type']} takes {keys[name]} dimensions, and {size} arrive")
            if name in keys:
                keys[name] = size
        size = keys.get("out_features", size)
        sized.append(keys)
    return sized, size


def read_layer(module: Module, place: str) -> Keys:
    """Our keys of a layer in sentence-transformers' form. place: the output that it must act on, if it states one.

    Raises ConfigError naming the file for keys, activations and places that rankpo does not have.
    """
    check_keys(module.folder / "config.json", module.config, (*LAYER_KEYS[module.name], *PLACES))
    for key in PLACES:
        if module.config.get(key) not in (None, place):
            raise ConfigError([f"{module.folder}: {key}={module.config[key]}; rankpo's layers act on {place}"])
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
