"""OpenVINO files: converted from ONNX, with weights in float32, float16 or 8 bits, and run on the CPU in float32."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rankpo.errors import ConfigError
from rankpo.models.exported.forms import Runner

PACKAGES = ("openvino", "onnx", "onnxscript")
NAMES = {None: "openvino_model.xml", "int8": "openvino_model_qint8.xml", "fp16": "openvino_model_fp16.xml"}


def check_compression(quantize: str | None) -> None:
    """Raises ConfigError if nncf, which compresses weights to 8 bits, is needed and not installed."""
    if quantize == "int8" and find_spec("nncf") is None:
        raise ConfigError(
            ["task.quantize=int8 with task.format=openvino needs the package nncf: pip install nncf; or set fp16"]
        )


def write_openvino(onnx: Path, folder: Path, quantize: str | None) -> Path:
    """Writes folder/NAME.xml and its .bin from an ONNX file, and returns the .xml.

    quantize: None for float32; "fp16" for weights in float16; "int8" for weights of 8 bits with float activations.
    """
    library = import_module("openvino")
    model = library.convert_model(str(onnx))
    if quantize == "int8":
        model = import_module("nncf").compress_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES[quantize]
    library.save_model(model, str(path), compress_to_fp16=quantize == "fp16")
    return path


def openvino_runner(path: Path) -> Runner:
    """The file as a function of its inputs, on the CPU, with products in float32."""
    core = import_module("openvino").Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.array(compiled(dict(arrays))[0])

    return run
