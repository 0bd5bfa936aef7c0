"""Export: the keys of task=export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.tasks.base import Task

DTYPES = ("float32", "bfloat16", "float16")
FINAL = "FINAL"
FORMATS = ("folder", "onnx", "openvino")
QUANTIZE = ("int8", "fp16")
PARTS = ("dense", "sparse", "colbert")  # Of a hybrid model.


@dataclass(frozen=True, kw_only=True)
class Export(Task):
    """Writes `output`/FINAL, or with several alphas `output`/alpha-A/FINAL. Each folder is loaded again and compared.

    run: a run directory; None exports the model of the config. checkpoint: "FINAL" or "step-N".
    soup: run directories, such as seeds of one recipe. The mean of their FINALs is the trained model, in place of run.
    alphas: values in [0, 1]; the weights of a folder are (1 - α)·start + α·trained.
    start: a folder or hub id; None takes the model that the run, or all runs of the soup, started from.
    format: "onnx" adds FINAL/onnx and "openvino" FINAL/openvino: the hidden states of a model with vectors, the logits of
    a sparse model, or the scores of a reranker. The file is compared with torch.
    quantize: "int8" gives that file weights of 8 bits, "fp16" of 16.
    part: "dense", "sparse" or "colbert", one part of a hybrid model as a model of its own: an embedding model, a hybrid
    model with this part alone, or a late-interaction model.
    metrics: what the file is compared by on eval_datasets; the table and the card have what is lost.
    The call returns the table's rows, one for each folder.
    """

    run: str | None = None
    checkpoint: str = FINAL
    dtype: str = "float32"
    alphas: Sequence[float] = (1.0,)
    start: str | None = None
    output: str = "export"
    soup: Sequence[str] = ()
    format: str = "folder"
    quantize: str | None = None
    part: str | None = None
    metrics: Sequence[str] = ("ndcg@10",)

    work: ClassVar[str] = "rankpo.tasks.work.export"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.quantize is not None and self.quantize not in QUANTIZE:
            raise ValueError(f"quantize must be one of {', '.join(QUANTIZE)} or null, got {self.quantize!r}")
        if self.quantize is not None and self.format == "folder":
            raise ValueError(f"quantize={self.quantize} needs format=onnx or openvino")
        if self.part not in (None, *PARTS):
            raise ValueError(f"part must be one of {', '.join(PARTS)} or null, got {self.part!r}")
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas must be numbers in [0, 1], got {list(self.alphas)}")
        if len(set(self.alphas)) < len(self.alphas):
            raise ValueError(f"alphas must be different, got {list(self.alphas)}; each value names a folder")
        number = self.checkpoint.removeprefix("step-")
        if self.checkpoint != FINAL and not (number.isascii() and number.isdigit()):
            raise ValueError(f"checkpoint must be FINAL or step-N, got {self.checkpoint!r}")
        if self.run is not None and not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: no such run directory")
        self._check_soup()

    def _check_soup(self) -> None:
        if not self.soup:
            return
        if self.run is not None or self.checkpoint != FINAL:
            raise ValueError(f"soup={list(self.soup)} mixes the FINALs of its runs; leave run and checkpoint out")
        if len(self.soup) < 2 or len({Path(run).resolve() for run in self.soup}) < len(self.soup):
            raise ValueError(f"soup must name two different run directories or more, got {list(self.soup)}")
        for run in self.soup:
            if not (Path(run) / FINAL).is_dir():
                raise ValueError(f"soup: {run} is not a run directory with a {FINAL}")
