"""RankingModel: the interface that every kind of model offers to trainers, evaluators and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.engine.body import body_of, compile_body, freeze_pooler, summary
from rankpo.models.engine.last_layer import OneToken, one_token, shorten_last_layer
from rankpo.models.engine.packing import mixes_padding, packed_arguments, padding, position_offset, switch_to_packed
from rankpo.models.engine.pooling import place_of_token
from rankpo.models.engine.two_way import check_windows
from rankpo.models.hub import push
from rankpo.models.inputs import Inputs
from rankpo.models.settings import Settings
from rankpo.runs.processes import Shardable
from rankpo.types import Batch, Labels, Prompt, Sequences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from rankpo.data.loaders.ranking import Group
    from rankpo.data.table import ExampleTable
    from rankpo.losses.sparsity import Sparsity

CPU_CHUNK_TOKENS = 4096  # The working set fits the caches; LOG.md, 2026-11-21, has the measurements.


class Writer(Protocol):
    """Interface of the `ModelKind` that writes a model as a folder."""

    @property
    def origin(self) -> str: ...

    def save(self, folder: Path, model: Any, description: Mapping[str, object]) -> float: ...


class RankingModel(Shardable, ABC):
    """A transformers backbone that processes ragged sequences chunk by chunk; one subclass per kind.

    A kind implements `forward`, `score` and `slot_scores`. kind: its name. inputs: converts the texts of a table to
    sequences. settings: the settings of the kind, saved with the weights. sharded: whether the parameters are
    sharded over ranks, see `processes.in_step`.

    layout: "packed" (one row of tokens, no padding), "padded" (a mask), or "auto": packed if the architecture supports
    it. chunk_tokens: tokens, with padding, of one call of the backbone; None means 4,096 on a CPU and all elsewhere.
    equal_lengths: whether all sequences of a call have one length, since padding changes this architecture's states.
    """

    kind: ClassVar[str]
    sparsity: Sparsity | None = None  # Regularisation of sparse vectors, which the trainers add.
    precision: str = "fp32"  # Precision of forward passes, set by the task; the key of stored vectors includes it.
    computes_in_parts: ClassVar[bool] = False  # Whether a forward pass of more than `part_tokens` is computed in parts.
    short_last: bool = False  # Whether the last layer can compute one token of each sequence; see `read_one_token`.
    part_tokens: int | None = None  # Tokens of one forward pass with stored activations, for kinds that can recompute.
    inputs: Inputs
    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    writer: Writer  # The kind that built the model.
    description: Mapping[str, object] = MappingProxyType({})  # How it was trained, for its card.

    @property
    def vocabulary(self) -> int:
        """V, the entries of a sparse vector. Raises TypeError for models without `sparsity`."""
        raise TypeError(f"{type(self).__name__} has no sparse vectors")

    def __init__(
        self, backbone: PreTrainedModel, inputs: Inputs, *, layout: str = "auto", chunk_tokens: int | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.settings, self.tokenizer = inputs, inputs.settings, inputs.tokenizer
        if layout not in ("auto", "packed", "padded"):
            raise ValueError(f"model.layout must be one of auto, packed, padded, got {layout!r}")
        self.chunk_tokens = chunk_tokens
        inner = body_of(backbone)
        check_windows(inner)
        self.packed = layout != "padded" and switch_to_packed(inner)
        if layout == "packed" and not self.packed:
            raise ValueError(
                f"model.layout=packed: {type(backbone).__name__} cannot be packed; set model.layout=padded"
            )
        self.equal_lengths = not self.packed and mixes_padding(inner)
        self.position_offset = position_offset(inner)
        # A cache of keys and values, for generation, would waste memory.
        self.constant_arguments = {"use_cache": False} if hasattr(inner.config, "use_cache") else {}
        self.backbone: nn.Module = backbone
        if inner is backbone:
            freeze_pooler(backbone)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model without a peft wrapper."""
        if not self.has_adapters:
            return cast("PreTrainedModel", self.backbone)
        return cast("PreTrainedModel", cast("PeftModel", self.backbone).get_base_model())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def read_one_token(self, pooling: str) -> None:
        """Lets `hidden_states` compute the last layer for the token alone that `pool` reads, if the body supports it."""
        self.short_last = self.packed and shorten_last_layer(body_of(self.base), pooling)

    def hidden_states(
        self, sequences: Sequences, pooling: str | None = None, skipped: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields chunks (rows [n], hidden states [tokens, D], lengths [n]) of all sequences, longest first. Skips
        empty sequences, which occur only with tokenizers that add no special tokens.

        The hidden states of a chunk's sequences are concatenated in the order of `rows`. pooling, skipped [N]: what `pool`
        will read of the result, if the caller reads nothing else. After `read_one_token`, a chunk then has the pooled
        token of each sequence alone, and lengths of 1.
        """
        starts = (torch.cumsum(sequences.lengths, 0) - sequences.lengths).tolist()
        ids = sequences.input_ids.to(self.device, non_blocking=True)
        types = None if sequences.token_types is None else sequences.token_types.to(self.device, non_blocking=True)
        for rows in self._chunks(sequences.lengths):
            lengths = sequences.lengths[rows]
            sizes = zip(rows.tolist(), lengths.tolist(), strict=True)
            places = [slice(starts[row], starts[row] + size) for row, size in sizes]
            run = self._run_packed if self.packed else self._run_padded
            attended = None if sequences.attended is None else sequences.attended[rows]
            further = {} if types is None else {"token_type_ids": [types[place] for place in places]}
            token = self._pooled_token(lengths, attended, pooling, None if skipped is None else skipped[rows])
            hidden = run([ids[place] for place in places], lengths, attended, token, **further)
            yield rows, hidden, lengths if token is None else torch.ones_like(lengths)

    def _pooled_token(
        self, lengths: Tensor, attended: Tensor | None, pooling: str | None, skipped: Tensor | None
    ) -> OneToken | None:
        """The token of each sequence that the last layer computes, or None if it computes all tokens."""
        places = place_of_token(lengths, pooling, skipped) if self.short_last and pooling is not None else None
        return None if places is None else one_token(lengths, places, attended, self.device)

    def _chunks(self, lengths: Tensor) -> Iterator[Tensor]:
        budget = self.chunk_tokens or (CPU_CHUNK_TOKENS if self.device.type == "cpu" else None)
        order = torch.argsort(lengths, descending=True, stable=True)
        order = order[lengths[order] > 0]
        begin, used = 0, 0
        for position, length in enumerate(lengths[order].tolist()):
            # With padding, every sequence of the chunk takes the length of the first.
            cost = length if self.packed else int(lengths[order[begin]]) if position > begin else length
            other = self.equal_lengths and length != int(lengths[order[begin]])
            if position > begin and (other or (budget is not None and used + cost > budget)):
                yield order[begin:position]
                begin, used, cost = position, 0, length
            used += cost
        if begin < len(order):
            yield order[begin:]

    def _run_packed(
        self,
        pieces: list[Tensor],
        lengths: Tensor,
        attended: Tensor | None,
        token: OneToken | None = None,
        **further: list[Tensor],
    ) -> Tensor:
        arguments = packed_arguments(lengths, self.device, self.position_offset, attended)
        if token is not None:
            arguments["one_token"] = token
        joined = {name: torch.cat(parts)[None] for name, parts in further.items()}
        return self._backbone(input_ids=torch.cat(pieces)[None], **joined, **arguments)[0]

    def _run_padded(
        self,
        pieces: list[Tensor],
        lengths: Tensor,
        attended: Tensor | None,
        token: OneToken | None = None,
        **further: list[Tensor],
    ) -> Tensor:
        padded = nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # [n, T]
        others = {name: nn.utils.rnn.pad_sequence(parts, batch_first=True) for name, parts in further.items()}
        if attended is None and bool((lengths == lengths[0]).all()):
            return self._backbone(input_ids=padded, **others).flatten(0, 1)
        mask, filled = padding(lengths, lengths if attended is None else attended, self.device)
        return self._backbone(input_ids=padded, attention_mask=mask, **others).flatten(0, 1)[filled]

    def _backbone(self, **arguments: object) -> Tensor:
        # The body includes the adapters, which are inside the layers; it excludes the head.
        return body_of(self.base)(**arguments, **self.constant_arguments).last_hidden_state

    @abstractmethod
    def forward(self, sequences: Sequences) -> object:
        """Returns the kind's output for N sequences: scores [N], vectors [N, D], or another input of its `score`."""

    @abstractmethod
    def score(self, output: Any, batch: Batch) -> Tensor:
        """Returns the scores [B, G] of each query's candidates. output: the result of `forward(batch.sequences)`."""

    @abstractmethod
    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        """Returns [slots] float32 on every rank: the score of every candidate of the table for its query."""

    def scores_of(self, query: Prompt, candidates: Sequence[str]) -> list[float] | None:
        """Returns the scores of a query's candidates, for judges; None for kinds that cannot score plain texts."""
        return None

    def learning_rates(self) -> dict[str, float]:
        """Returns learning rates of parameters, by name, that differ from the optimizer's."""
        return {}

    def labels(self, table: ExampleTable, groups: Sequence[Group]) -> Labels:
        """Returns the labels of the groups, which do not depend on the weights."""
        return self.inputs.labels(table, groups)

    def truncation(self, table: ExampleTable) -> str | None:
        """Returns one line about truncation of the table's texts by the maximum lengths, or None."""
        return self.inputs.report(table)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Sets evaluation mode inside the block and restores the previous mode afterwards."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def saved_state(self) -> dict[str, Tensor]:
        """Returns the weights that affect an output, by name; a saved folder restores exactly these."""
        return dict(self.state_dict())

    def save(self, folder: str | Path) -> Path:
        """Writes a folder that rankpo, transformers and sentence-transformers load, and returns it.

        Raises ExportError if the reloaded folder gives different outputs, and ConfigError if the folder exists.
        """
        place = Path(folder)
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise ConfigError([f"{place} exists already; choose another folder"])
        self.writer.save(place, self, self.description)
        return place

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, revision: str | None = None, endpoint: str | None = None
    ) -> str:
        """Uploads the model and its card to a repository of a model hub and returns its URL; see `hub.push`."""
        with TemporaryDirectory() as temporary:
            return push(
                self.save(Path(temporary) / "model"), repo_id, private=private, revision=revision, endpoint=endpoint
            )

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.backbone, "peft_config")

    def take_adapters(self, adapted: PeftModel) -> None:
        """Replaces the backbone by its version with adapters. Freezes the adapters of an unused pooler too, since DDP
        waits for the gradient of every trained weight."""
        self.backbone = adapted
        base = self.base
        if body_of(base) is base:
            freeze_pooler(base)

    def summary(self, origin: str, attention: str) -> str:
        """One line about the model. origin: of its weights. attention: its implementation."""
        return summary(origin, self, f"{'packed' if self.packed else 'padded'} {attention}")

    @property
    def has_threads(self) -> bool:
        """Whether threads can run forward passes at the same time: on a CPU, without collectives and compiled code."""
        return self.device.type == "cpu" and not self.sharded and body_of(self.base)._compiled_call_impl is None

    def compile_body(self, say: Callable[[str], None]) -> None:
        """Compiles the body with torch.compile, for sequences of any length."""
        compile_body(self.base, self.packed, say)

    def merge_adapters(self) -> None:
        """Merges the adapters, if any, into the weights."""
        if self.has_adapters:
            adapted = cast("PeftModel", self.backbone)
            self.backbone = adapted.merge_and_unload()

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Disables the adapters inside the block: a reference model without a second copy of the weights."""
        backbone = cast("PeftModel", self.backbone)
        frozen = [parameter for parameter in backbone.parameters() if not parameter.requires_grad]
        try:
            with backbone.disable_adapter():
                yield
        finally:
            for parameter in frozen:  # peft re-enables gradients of all adapters, including an unused pooler's.
                parameter.requires_grad_(False)
