"""Reference scores from three interchangeable sources: stored scores, a frozen copy, or disabled adapters."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from rankpo.data.table import ExampleTable
from rankpo.errors import ConfigError, StorageError
from rankpo.models.base import RankingModel
from rankpo.models.engine.token_logps import ReferenceStates
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.atomic import replacing
from rankpo.types import Batch, Sequences

FILE = "reference_logprobs.safetensors"


class Reference(ABC):
    """Source of reference scores: `scores(batch)` returns [B, G] without gradient.

    `states(sequences)` returns the `ReferenceStates` of a causal language model for a `TokenRequest`.
    autocast: the policy's, set by the trainer, since a reference in another precision would differ from the policy
    before the first update.
    """

    autocast: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor: ...

    def states(self, sequences: Sequences) -> ReferenceStates:
        raise TypeError(f"{type(self).__name__} has no token distributions; set trainer.reference=live")


class StoredReference(Reference):
    """Scores of the whole table, computed before training; batches carry them.

    Chunks differ from those of the policy's forward pass, so the last digits differ: before the first update, policy
    minus reference is rounding noise (1e-7 of a score in float32) and not 0 as with the other sources. The first loss
    then equals log 2 up to about 1e-6, and the order of equal rewards is random, so that `rewards/accuracies` is
    meaningful from the second update. No threshold hides the noise, because it would hide real gaps of that size.
    """

    def scores(self, batch: Batch) -> Tensor:
        assert batch.reference is not None, "the loader was built without stored scores"
        return batch.reference


class GivesStates(Protocol):
    """A model that can be the reference of token log-probabilities."""

    def reference_states(self, sequences: Sequences) -> ReferenceStates: ...


class LiveReference(Reference):
    """A frozen copy of the start model, which scores every micro-batch."""

    def __init__(self, model: RankingModel) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        with self.autocast():
            rows = self.model(batch.sequences)
        return self.model.score(rows, batch)  # Outside autocast, like the policy's: float32 products.

    def states(self, sequences: Sequences) -> ReferenceStates:
        with self.autocast():
            return cast("GivesStates", self.model).reference_states(sequences)


class AdapterReference(Reference):
    """The policy with disabled adapters, which needs one copy of the weights."""

    def __init__(self, model: RankingModel) -> None:
        self.model = model

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        with self.model.evaluating():
            with self.model.adapters_off(), self.autocast():
                rows = self.model(batch.sequences)
            return self.model.score(rows, batch)

    def states(self, sequences: Sequences) -> ReferenceStates:
        with self.model.adapters_off(), self.autocast():
            return cast("GivesStates", self.model).reference_states(sequences)


def stored_scores(
    model: RankingModel,
    table: ExampleTable,
    cache_dir: str | Path,
    say: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> np.ndarray:
    """Returns [slots] float32: the model's score of every candidate of the table for its query.

    The cache `cache_dir`/reference is keyed by weights, settings, precision and table, so that later runs and all
    jobs of a sweep share it. If several jobs start at once, one computes the scores. autocast: the policy's, so that precision does not
    affect the preference.
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
    """Runs only the forward pass under autocast, as the accelerator does for the policy."""
    forward, own = model.forward, model.__dict__.get("forward")

    def wrapped(*arguments: object, **named: object) -> object:
        with autocast():
            return forward(*arguments, **named)

    model.forward = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward
        if own is not None:  # Restores the attribute that the accelerator set.
            model.forward = own  # type: ignore[method-assign]


def _write(path: Path, scores: np.ndarray, table: ExampleTable, settings: object) -> None:
    """Writes the scores and their provenance atomically on rank 0, while the other ranks wait."""
    if processes.rank() == 0:
        with replacing(path) as temporary:
            metadata = {**_belongs(table, settings), "checksum": _digest(scores)}
            save_file({"scores": scores}, temporary, metadata=metadata)
    processes.barrier()


def _read(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Returns the scores and their provenance. Raises StorageError for damaged files."""
    try:
        with safe_open(path, framework="np") as opened:
            found, scores = dict(opened.metadata() or {}), opened.get_tensor("scores")
    except SafetensorError as error:
        raise StorageError(f"{path} is damaged ({error})") from error
    if found.get("checksum") != _digest(scores):
        raise StorageError(f"{path} is damaged (the checksum of its scores is wrong)")
    return scores, found


def _digest(scores: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(scores).data)


def _drop_damaged(path: Path, say: Callable[[str], None]) -> None:
    """Removes a damaged file of scores on rank 0, so that the run computes them again."""
    if processes.rank() == 0 and path.exists():
        try:
            _read(path)
        except StorageError as error:
            say(f"{error}; the scores are computed again")
            path.unlink()


def _belongs(table: ExampleTable, settings: object) -> dict[str, str]:
    """Returns the provenance of stored scores: texts, tokenizer and settings."""
    return {"table": table.folder.name, "settings": repr(settings)}


def save_scores(
    path: Path, scores: np.ndarray, table: ExampleTable, settings: object, say: Callable[[str], None]
) -> None:
    """Saves reference scores in a run's folder, for `load_reference_logprobs=` of other runs."""
    _write(path, scores, table, settings)
    say(f"saved reference log-probabilities to {path}")


def load_scores(path: str, table: ExampleTable, settings: object, say: Callable[[str], None]) -> np.ndarray:
    """Returns scores [slots] from a file of `save_scores`, or from a run directory with one, of any model.

    Raises ConfigError if the file is missing or was computed with other data, tokens or lengths, and StorageError if
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
    """Returns a digest of all parameters and buffers, by name and content."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
