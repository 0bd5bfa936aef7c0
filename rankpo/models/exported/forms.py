"""ExportForm: what a file of another runtime computes for a kind of model, and the model that runs on such a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.attention import plain_attention
from rankpo.models.base import RankingModel
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.engine.body import body_of
from rankpo.models.reranker.heads import ScoreHead
from rankpo.models.reranker.model import RerankerModel
from rankpo.models.sparse.model import SparseModel
from rankpo.models.static import StaticModel
from rankpo.models.vectors import GivesVectors
from rankpo.types import Sequences

Runner = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # From arrays [N, T] int64 by name to the output.
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
PAIRS = (("what do moles eat?", "Moles eat earthworms, which they keep alive in larders below the ground."), ("a", "b"))
TEXTS = ("what do moles eat?", "a", "Moles eat earthworms, which they keep alive in larders below the ground. " * 4)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A module as a function of `inputs`, tensors [N, T] int64. output: the name of its result [N, …]."""

    module: nn.Module
    inputs: tuple[str, ...]
    output: str


class ExportForm(ABC):
    """The form of one kind of model. reader: the class of sentence-transformers that loads the file in a folder of this
    kind."""

    reader: ClassVar[str]

    def read_in(self, folder: Path) -> bool:
        """Whether `reader` takes the file in this saved folder for what it computes."""
        return True

    @abstractmethod
    def exported(self, model: RankingModel) -> Exported:
        """The module of the file, on the CPU, with transformers' own attention; see `plain`."""

    @abstractmethod
    def running(self, model: RankingModel, run: Runner) -> Replaced:
        """What the file computes in place of the model's own parts."""

    @abstractmethod
    def outputs(self, model: RankingModel) -> np.ndarray:
        """The model's results on a few texts, to compare."""


@dataclass(frozen=True)
class Replaced:
    """A method of a model and the function in its place."""

    method: str
    function: Callable[..., Tensor]


@contextmanager
def run_by(model: RankingModel, form: ExportForm, run: Runner, name: str) -> Iterator[None]:
    """Has a file compute the results of the model inside the block. name: of the file, for the key of stored vectors."""
    replaced = form.running(model, run)
    packed, precision = model.packed, model.precision
    model.packed, model.precision = False, name
    setattr(model, replaced.method, replaced.function)
    try:
        yield
    finally:
        delattr(model, replaced.method)
        model.packed, model.precision = packed, precision


class _Called(nn.Module):
    """A transformers model as a function of its inputs alone. pick: takes the result from its output."""

    def __init__(self, backbone: nn.Module, names: tuple[str, ...], pick: str) -> None:
        super().__init__()
        self.backbone, self.names, self.pick = backbone, names, pick

    def forward(self, *tensors: Tensor) -> Tensor:
        result: Tensor = self.backbone(**dict(zip(self.names, tensors, strict=True)))[self.pick]
        return result


@contextmanager
def plain(model: RankingModel) -> Iterator[None]:
    """Has the model use transformers' own attention, which exporters know."""
    with plain_attention(model.base, model.packed), torch.no_grad():
        yield


class HiddenStates(ExportForm):
    """The last hidden states [N, T, D] of a model with vectors; pooling and layers behind it stay outside."""

    reader = "SentenceTransformer"

    def exported(self, model: RankingModel) -> Exported:
        if isinstance(model, EmbeddingModel) and model.read_layers_of:
            raise ConfigError(
                [
                    "task.format exports the last hidden states, and this model reads those of other layers too "
                    "(model.prior_layers, model.pooled_layers)"
                ]
            )
        if isinstance(model.base, StaticModel):
            raise ConfigError(
                [
                    "task.format exports layers, and static token embeddings have none; serve FINAL itself, whose table is small"
                ]
            )
        output = "last_hidden_state"
        module = _Called(body_of(model.base), (IDS, MASK), output)
        return Exported(module=module.eval(), inputs=(IDS, MASK), output=output)

    def running(self, model: RankingModel, run: Runner) -> Replaced:
        def backbone(input_ids: Tensor, attention_mask: Tensor | None = None, **more: object) -> Tensor:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return torch.from_numpy(run({IDS: input_ids.cpu().numpy(), MASK: mask.cpu().numpy()}))

        return Replaced("_backbone", backbone)

    def outputs(self, model: RankingModel) -> np.ndarray:
        assert isinstance(model, GivesVectors)
        return model.encode_stored(TEXTS, "passage").rows.numpy()


class VocabularyLogits(ExportForm):
    """The logits [N, T, V] of a masked-language head; the pooling stays outside."""

    reader = "SparseEncoder"

    def exported(self, model: RankingModel) -> Exported:
        module = _Called(model.base, (IDS, MASK), "logits")
        return Exported(module=module.eval(), inputs=(IDS, MASK), output="logits")

    def running(self, model: RankingModel, run: Runner) -> Replaced:
        assert isinstance(model, SparseModel)

        def pooled(sequences: Sequences) -> Tensor:
            rows = [torch.zeros(0, model.dim)]
            for arrays in _padded(sequences, (IDS, MASK), model, at_once=8):  # Logits are large.
                rows.append(model.pooled_logits(torch.from_numpy(run(arrays)), torch.from_numpy(arrays[MASK])))
            return torch.cat(rows)

        return Replaced("_pooled", pooled)

    def outputs(self, model: RankingModel) -> np.ndarray:
        assert isinstance(model, SparseModel)
        return np.asarray(model.encode(TEXTS).toarray())


class Scores(ExportForm):
    """The logits [N, 1] of a cross-encoder with a classification head."""

    reader = "CrossEncoder"

    def exported(self, model: RankingModel) -> Exported:
        assert isinstance(model, RerankerModel)
        names = self._names(model)
        return Exported(module=_Called(model.base, names, "logits").eval(), inputs=names, output="logits")

    @staticmethod
    def _names(model: RerankerModel) -> tuple[str, ...]:
        typed = model.inputs.sequences_of(PAIRS).token_types is not None
        return (IDS, MASK, TYPES) if typed else (IDS, MASK)

    def running(self, model: RankingModel, run: Runner) -> Replaced:
        assert isinstance(model, RerankerModel)
        names = self._names(model)

        def logits(sequences: Sequences) -> Tensor:
            found = [torch.from_numpy(run(arrays))[:, 0] for arrays in _padded(sequences, names, model, at_once=32)]
            return torch.cat([torch.zeros(0), *found])

        return Replaced("_logits", logits)

    def outputs(self, model: RankingModel) -> np.ndarray:
        assert isinstance(model, RerankerModel)
        return np.array(model.compute_score(list(PAIRS), normalize=False), dtype=np.float32)


class LastTokenScores(Scores):
    """The scores [N, 1] of a decoder: its head on the last token that the mask has, so that sequences may be padded on
    either side. Nothing is generated, and there is no cache."""

    def read_in(self, folder: Path) -> bool:
        """CrossEncoder reads a folder of a causal language model by the logits of all tokens, and so not this file."""
        return not (folder / "modules.json").exists()

    def exported(self, model: RankingModel) -> Exported:
        assert isinstance(model, RerankerModel)
        module = _ScoreOfLastToken(model.base, model.head)
        return Exported(module=module.eval(), inputs=(IDS, MASK), output="logits")


class _ScoreOfLastToken(nn.Module):
    """A reranker as a function of ids and mask [N, T]."""

    def __init__(self, backbone: PreTrainedModel, head: ScoreHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, *tensors: Tensor) -> Tensor:
        ids, mask = tensors
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        called = body_of(self.backbone)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        last = (mask * torch.arange(ids.shape[1])).argmax(1)  # [N]
        rows = called[0][torch.arange(ids.shape[0]), last]  # [N, D], one token for each sequence
        return self.head.scores(self.backbone, rows, torch.ones_like(last))[:, None]


def _padded(
    sequences: Sequences, names: tuple[str, ...], model: RankingModel, at_once: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields arrays [n, T] int64 of `at_once` sequences at a time, padded on the right."""
    lengths = sequences.lengths.tolist()
    padding = int(model.tokenizer.pad_token_id or 0)
    ids = sequences.input_ids.cpu().split(lengths)
    types = None if sequences.token_types is None else sequences.token_types.cpu().split(lengths)
    for start in range(0, len(lengths), at_once):
        rows = range(start, min(start + at_once, len(lengths)))
        columns = {
            IDS: _stacked([ids[row] for row in rows], padding),
            MASK: _stacked([torch.ones(lengths[row], dtype=torch.int64) for row in rows], 0),
        }
        if types is not None and TYPES in names:
            columns[TYPES] = _stacked([types[row] for row in rows], 0)
        yield columns


def _stacked(pieces: list[Tensor], padding: int) -> np.ndarray:
    return nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=padding).numpy()


def form_of(model: RankingModel) -> ExportForm:
    """Raises ConfigError for a kind without a form."""
    if isinstance(model, SparseModel):
        return VocabularyLogits()
    if isinstance(model, RerankerModel):
        return Scores() if model.settings.head == "encoder" else LastTokenScores()
    if isinstance(model, GivesVectors):
        return HiddenStates()
    raise ConfigError([f"task.format exports models with vectors and rerankers, and kind={model.kind} is neither"])
