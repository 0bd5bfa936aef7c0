"""Reference scores from three interchangeable sources: stored before the run, a frozen copy, or adapters off."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from rankpo.data.table import ExampleTable
from rankpo.errors import ConfigError, StorageError
from rankpo.models.engine.token_logps import ReferenceStates
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.atomic import replacing
from rankpo.types import Batch, Sequences

FILE = "reference_logprobs.safetensors"


class Reference(ABC):
    """`scores(batch)` gives the reference model's [B, G], without gradient.

    `states(sequences)` gives what a `TokenRequest` needs of a reference that is a causal language model.
    autocast: the policy's, set by the trainer; a reference of another precision would differ from it before any update.
    """

    autocast: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor: ...

    def states(self, sequences: Sequences) -> ReferenceStates:
        raise TypeError(f"{type(self).__name__} has no token distributions; set trainer.reference=live")


class StoredReference(Reference):
    """Scores that were computed for the whole table before training; batches carry them.

    They come from other chunks than the policy's, so that the last digits differ: before the first update, policy
    less reference is rounding noise (1e-7 of a score in float32) and not 0 as with the other two. The first loss is
    log 2 to about 1e-6 then, and which of two equal rewards is larger a coin toss: `rewards/accuracies` means
    something from the second update on. No threshold hides that: a real gap of that size would vanish too.
    """

    def scores(self, batch: Batch) -> Tensor:
        assert batch.reference is not None, "the loader was built without stored scores"
        return batch.reference


class LiveReference(Reference):
    """A frozen copy of the start model, scored beside the policy in every micro-batch."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        with self.autocast():
            rows = self.model(batch.sequences)
        return self.model.score(rows, batch)  # outside: products of embeddings stay float32, as the policy's do

    def states(self, sequences: Sequences) -> ReferenceStates:
        with self.autocast():
            return self.model.reference_states(sequences)


class AdapterReference(Reference):
    """The policy with its adapters switched off: one copy of the weights in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        with self.model.evaluating():
            with self.model.adapters_off(), self.autocast():
                rows = self.model(batch.sequences)
            return self.model.score(rows, batch)

    def states(self, sequences: Sequences) -> ReferenceStates:
        with self.model.adapters_off(), self.autocast():
            return self.model.reference_states(sequences)


def stored_scores(
    model: Any,
    table: ExampleTable,
    cache_dir: str | Path,
    say: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> np.ndarray:
    """[slots] float32: the model's score of every candidate of the table for its query.

    Kept under `cache_dir`/reference, keyed by weights, settings, precision and table, so that later runs and all
    jobs of a sweep reuse it; of jobs that start at once, one computes. autocast: the policy's; a difference of
    precision is no preference.
    """
    device = model.device.type
    with autocast():
        precision = [str(torch.get_autocast_dtype(device))] if torch.is_autocast_enabled(device) else []
    parts = (fingerprint_weights(model), repr(model.settings), table.folder.name, *precision)
    path = Path(cache_dir) / "reference" / f"{xxhash.xxh3_128_hexdigest('|'.join(parts).encode())}.safetensors"
    _drop_damaged(path, say)
    with must_compute(path, say) as ours:
        if not ours:
            say(f"reference scores from {path}")
            return _read(path)[0]
        say(f"computing reference scores of {len(table.candidates)} candidates")
        with _forward_under(model, autocast):
            scores = model.slot_scores(table)
        _write(path, scores, table, model.settings)
        return scores


@contextmanager
def _forward_under(model: nn.Module, autocast: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Lets the forward pass run under autocast, and nothing else: as the accelerator does with the policy's."""
    forward, own = model.forward, model.__dict__.get("forward")

    def wrapped(*arguments: Any, **named: Any) -> Any:
        with autocast():
            return forward(*arguments, **named)

    model.forward = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward
        if own is not None:  # the accelerator's, put there before
            model.forward = own  # type: ignore[method-assign]


def _write(path: Path, scores: np.ndarray, table: ExampleTable, settings: Any) -> None:
    """The scores, and what they belong to, whole or not at all; on rank 0, while the others wait."""
    if processes.rank() == 0:
        with replacing(path) as temporary:
            metadata = {**_belongs(table, settings), "checksum": _digest(scores)}
            save_file({"scores": scores}, temporary, metadata=metadata)
    processes.barrier()


def _read(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Scores and what they belong to. Raises StorageError where they are not those that were written."""
    try:
        with safe_open(path, framework="np") as opened:
            found, scores = dict(opened.metadata() or {}), opened.get_tensor("scores")
    except SafetensorError as error:
        raise StorageError(f"{path} is damaged ({error})") from error
    if found.get("checksum") != _digest(scores):
        raise StorageError(f"{path} is damaged (its scores are not those that were written)")
    return scores, found


def _digest(scores: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(scores).data)


def _drop_damaged(path: Path, say: Callable[[str], None]) -> None:
    """Removes a file of scores that cannot be used, on rank 0: they are computed again."""
    if processes.rank() == 0 and path.exists():
        try:
            _read(path)
        except StorageError as error:
            say(f"{error}; they are computed again")
            path.unlink()


def _belongs(table: ExampleTable, settings: object) -> dict[str, str]:
    """What stored scores hold for: these texts under this tokenizer, read in this way."""
    return {"table": table.folder.name, "settings": repr(settings)}


def save_scores(path: Path, scores: np.ndarray, table: ExampleTable, settings: Any, say: Callable[[str], None]) -> None:
    """Keeps reference scores beside a run, for `load_reference_logprobs=` of others."""
    _write(path, scores, table, settings)
    say(f"reference log-probabilities kept in {path}")


def load_scores(path: str, table: ExampleTable, settings: Any, say: Callable[[str], None]) -> np.ndarray:
    """[slots] scores from a file of `save_scores`, or from a run directory that has one; of whatever model.

    Raises ConfigError where it is not there, or was computed for other data, tokens or lengths; StorageError where
    it is damaged.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(
            [f"load_reference_logprobs={path}: no such file; a run with cache_reference_logprobs=true writes one"]
        )
    scores, found = _read(file)
    wrong = [name for name, value in _belongs(table, settings).items() if found.get(name) != value]
    if wrong:
        what = {"table": "datasets or tokenizer", "settings": f"model settings ({found.get('settings')})"}
        raise ConfigError(
            [f"load_reference_logprobs={path} was computed with other {' and '.join(what[n] for n in wrong)}"]
        )
    say(f"reference log-probabilities from {file}")
    return scores


def fingerprint_weights(module: nn.Module) -> str:
    """Of all parameters and buffers, by name and content."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
