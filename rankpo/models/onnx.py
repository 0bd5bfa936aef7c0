"""The backbone of a model as ONNX, and a model that runs on it: its quality is measured as that of any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.base import RankingModel, plain_attention
from rankpo.models.engine.body import body_of

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
NAMES = {None: "model.onnx", "int8": "model_qint8.onnx"}  # in FINAL/onnx


def require_packages() -> None:
    """Raises ConfigError naming a package of ONNX that is not installed."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ConfigError([f"task.format=onnx needs the package {name}: pip install 'rankpo[onnx]'"])


class _HiddenStates(nn.Module):
    """A backbone as a function of token ids and mask alone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def write_onnx(model: RankingModel, folder: Path, quantize: str | None) -> Path:
    """Writes the hidden states of the model's backbone as folder/NAME, with any number of sequences and tokens.

    quantize: None for float32; "int8" for weights of 8 bits, by onnxruntime's dynamic quantisation. Inputs: input_ids and
    attention_mask [N, T] int64; output: last_hidden_state [N, T, D]. Returns the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES[None]
    ids = torch.ones(2, 8, dtype=torch.int64)
    shapes = {0: torch.export.Dim("sequences"), 1: torch.export.Dim("tokens")}
    base: PreTrainedModel = model.base
    with plain_attention(base, model.packed), torch.no_grad():
        torch.onnx.export(
            _HiddenStates(body_of(base)).eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_shapes=(shapes, shapes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if quantize != "int8":
        return path
    library = import_module("onnxruntime.quantization")
    small = folder / NAMES["int8"]
    library.quantize_dynamic(path, small, weight_type=library.QuantType.QInt8)
    path.unlink()
    return small


@contextmanager
def run_by_onnx(model: RankingModel, path: Path) -> Iterator[None]:
    """Has the backbone of an ONNX file compute the model's hidden states inside the block."""
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def backbone(input_ids: Tensor, attention_mask: Tensor | None = None, **more: object) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given = {"input_ids": input_ids.cpu().numpy(), "attention_mask": mask.cpu().numpy()}
        return torch.from_numpy(session.run(None, given)[0])

    packed, own, precision = model.packed, model._backbone, model.precision
    model.packed, model._backbone = False, backbone  # type: ignore[method-assign, assignment]
    model.precision = f"onnx {path.name}"  # Stored vectors of the model in torch are others.
    try:
        yield
    finally:
        model.packed, model._backbone = packed, own  # type: ignore[method-assign, assignment]
        model.precision = precision
