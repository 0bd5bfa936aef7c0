"""Ranked lists: the records of windows and of whole lists, and the interfaces of models that rank them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rankpo.data.text.permutations import Permutation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.listwise.inputs import ListwiseInputs
    from rankpo.models.listwise.settings import ListwiseSettings
    from rankpo.types import Sequences


@dataclass(frozen=True)
class WindowRecord:
    """One window: positions [start, end) of the list at that time, the number of the pass, and the result.

    response: the generated text, or None without generation. scores: logits by position in the window, or None.
    """

    start: int
    end: int
    number: int
    permutation: Permutation
    response: str | None = None
    logits: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RankedList:
    """A ranked list. order: indices of the given documents, best first. scores: in that order, strictly decreasing.

    logits: by document index, from the last window with the document, or None. Logits of different windows are not
    comparable; they are the scores only if one window covered the list and no two logits are equal. held: by document
    index, the index of that window in `windows`, or None. decode: the decoding that was used.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...]
    logits: tuple[float | None, ...]
    held: tuple[int | None, ...]
    windows: tuple[WindowRecord, ...]
    decode: str

    def by_document(self) -> np.ndarray:
        """[documents] float32 scores in the order of the given documents."""
        values = np.empty(len(self.order), dtype=np.float32)
        values[list(self.order)] = self.scores
        return values

    @property
    def failed(self) -> int:
        """The number of windows with an unparsable answer, which kept their order."""
        return sum(record.permutation.status == "failed" for record in self.windows)


class ListwiseOutput(NamedTuple):
    """logits [N, window] float32 of the identifiers at the score position; answer_logps [N] summed log-probabilities
    of the answers in nats, or None if the sequences have no answers."""

    logits: Tensor
    answer_logps: Tensor | None


class ReadsWindows(Protocol):
    """Interface of models that generate the order of a window. decode_modes: the supported decodings. wave_tokens:
    tokens of the prompts of one batch."""

    inputs: ListwiseInputs
    settings: ListwiseSettings
    tokenizer: PreTrainedTokenizerBase

    @property
    def decode_modes(self) -> tuple[str, ...]: ...
    @property
    def wave_tokens(self) -> int: ...
    def evaluating(self) -> AbstractContextManager[None]: ...
    def write(self, prompts: Sequence[np.ndarray], budget: int) -> list[list[int]]: ...


class ReadsIdentifiers(ReadsWindows, Protocol):
    """Interface of models in this process, which also compute the logits of a window's identifiers."""

    packed: bool

    @property
    def base(self) -> PreTrainedModel: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, sequences: Sequences) -> ListwiseOutput: ...
    def identifier_logits(self, hidden: Tensor) -> Tensor: ...
