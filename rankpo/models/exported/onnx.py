"""ONNX files: written by torch, in float32, float16 or with weights of 8 bits, and run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from rankpo.models.exported.forms import Exported, Runner

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
NAMES = {None: "model.onnx", "int8": "model_qint8.onnx", "fp16": "model_fp16.onnx"}


def write_onnx(exported: Exported, folder: Path, quantize: str | None) -> Path:
    """Writes folder/NAME, with any number of sequences and tokens, and returns the file.

    quantize: None for float32; "fp16" for weights and products in float16; "int8" for weights of 8 bits, by onnxruntime's
    dynamic quantisation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES[None]
    ids = torch.ones(2, 8, dtype=torch.int64)
    shapes = {0: torch.export.Dim("sequences"), 1: torch.export.Dim("tokens")}
    # Of the exporter itself: missing torchvision, names of axes, deprecated parts of torch.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            exported.module,
            tuple(ids.clone() for _ in exported.inputs),
            str(path),
            input_names=list(exported.inputs),
            output_names=[exported.output],
            dynamic_shapes=(tuple(shapes for _ in exported.inputs),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if quantize is None:
        return path
    small = folder / NAMES[quantize]
    if quantize == "int8":
        library = import_module("onnxruntime.quantization")
        library.quantize_dynamic(path, small, weight_type=library.QuantType.QInt8)
    else:
        library = import_module("onnx")
        halved = import_module("onnxruntime.transformers.float16").convert_float_to_float16
        library.save(halved(library.load(path), keep_io_types=True), small)
    path.unlink()
    return small


def onnx_runner(path: Path) -> Runner:
    """The file as a function of its inputs, on the CPU."""
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        output: np.ndarray = session.run(None, dict(arrays))[0]
        return output

    return run
