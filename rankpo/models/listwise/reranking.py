"""Reranking with a listwise model: sliding windows, batched over queries, with a record of every window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

import numpy as np
import torch

from rankpo.data.loaders.planner import cut, deal
from rankpo.data.text.permutations import Permutation, parse
from rankpo.models.listwise import decoding as decoding
from rankpo.models.listwise.inputs import PASSAGE, QUERY
from rankpo.models.listwise.ranked import RankedList, WindowRecord
from rankpo.models.listwise.windows import windows
from rankpo.runs import processes

if TYPE_CHECKING:
    from rankpo.data.readers.requests import Request
    from rankpo.data.table import ExampleTable
    from rankpo.models.listwise.ranked import ReadsIdentifiers, ReadsWindows


@dataclass
class _State:
    """A request in progress: token ids of its texts and the current order."""

    query: np.ndarray
    passages: list[np.ndarray]
    order: list[int]
    records: list[WindowRecord] = field(default_factory=list)
    logits: dict[int, float] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    settled: bool = False


class Ordering(TypedDict, total=False):
    """Overrides of `ListwiseSettings` for a reranker; None keeps the model's value."""

    decode: str | None
    window: int | None
    stride: int | None
    passes: int | None
    top_k: int | None


class ListwiseReranker:
    """Orders documents with a listwise model, by default with the model's settings.

    model: a `ListwiseModel`, or one in vLLM, which supports only `generate`. changed: overrides of the model's
    settings. on_window_error: "raise", or "keep", with which a window whose forward pass raises RuntimeError keeps its
    order and is marked as failed. Raises ValueError for a window with more passages than identifiers.
    """

    def __init__(
        self,
        model: ReadsWindows,
        *,
        on_window_error: str = "raise",
        **changed: Unpack[Ordering],
    ) -> None:
        settings = model.settings
        self.model = model
        self.decode = changed.get("decode") or settings.decode
        self.window = changed.get("window") or settings.window
        self.stride = changed.get("stride") or min(settings.stride, self.window)
        self.passes = changed.get("passes") or settings.passes
        self.top_k = changed.get("top_k") or settings.top_k
        self.on_window_error = on_window_error
        if self.decode not in model.decode_modes:
            raise ValueError(f"decode must be one of {', '.join(model.decode_modes)}, got {self.decode!r}")
        if not 2 <= self.window <= len(model.inputs.layout.identifiers):
            raise ValueError(
                f"window must be in 2 to {len(model.inputs.layout.identifiers)}, the number of identifiers, "
                f"got {self.window}"
            )
        windows(0, 0, self.window, self.stride)  # Raises for an invalid stride.
        if on_window_error not in ("raise", "keep"):
            raise ValueError(f"on_window_error must be raise or keep, got {on_window_error!r}")

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[tuple[int, float, str]]:
        """Returns at most `top_k` tuples (index into `documents`, score, text), best first; [] without documents.

        Raises TypeError for values other than text, and ValueError for an empty query.
        """
        if isinstance(documents, str):
            raise TypeError("documents must be a list of strings, got one string")
        (ranked,) = self.rank_many([(query, documents)])
        pairs = list(zip(ranked.order, ranked.scores, strict=True))[:top_k]
        return [(index, score, documents[index]) for index, score in pairs]

    @torch.inference_mode()
    def rank_many(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[RankedList]:
        """Returns the rankings of (query, documents) in order; a batch contains the j-th windows of all requests."""
        states = self._open(requests)
        return self._run(states)

    def rank_requests(self, requests: Sequence[Request]) -> list[RankedList]:
        """Returns the rankings of requests on every rank; one rank processes each request."""
        sizes = np.array([sum(map(len, request.documents)) for request in requests], dtype=np.int64)  # In characters.
        own = deal(sizes, processes.world_size())[processes.rank()]
        found = self.rank_many([(requests[index].query, requests[index].documents) for index in own])
        gathered = processes.gather_objects(dict(zip(own.tolist(), found, strict=True)))
        merged = {index: ranked for part in gathered for index, ranked in part.items()}
        return [merged[index] for index in range(len(requests))]

    def _run(self, states: Sequence[_State]) -> list[RankedList]:
        with self.model.evaluating():
            for number in range(1, self.passes + 1):
                self._pass(states, number)
        return [self._ranked(state) for state in states]

    def _open(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[_State]:
        for index, (query, documents) in enumerate(requests):
            for place, text in (("query", query), *((f"documents[{n}]", item) for n, item in enumerate(documents))):
                if not isinstance(text, str):
                    raise TypeError(f"requests[{index}]: {place} must be a text, got {type(text).__name__}")
            if not query.strip():
                raise ValueError(f"requests[{index}]: the query is empty")
        texts = {QUERY + query: None for query, _ in requests}
        texts |= {PASSAGE + document: None for _, documents in requests for document in documents}
        encoded = self.model.inputs.tokenize(list(texts))
        ids = {text: np.asarray(row, dtype=np.int64) for text, row in zip(texts, encoded, strict=True)}
        return [
            _State(ids[QUERY + query], [ids[PASSAGE + text] for text in documents], list(range(len(documents))))
            for query, documents in requests
        ]

    def _pass(self, states: Sequence[_State], number: int) -> None:
        ranges = [
            [] if state.settled else windows(0, min(self.top_k, len(state.order)), self.window, self.stride)
            for state in states
        ]
        before = [list(state.order) for state in states]
        for wave in range(max((len(own) for own in ranges), default=0)):
            chosen = [(state, own[wave]) for state, own in zip(states, ranges, strict=True) if wave < len(own)]
            self._wave(chosen, number)
        for state, old in zip(states, before, strict=True):
            state.settled = state.order == old  # After a pass without changes, further passes give the same order.

    def _wave(self, chosen: Sequence[tuple[_State, tuple[int, int]]], number: int) -> None:
        """Orders one window of each state."""
        prompts = [
            self.model.inputs.prompt(state.query, [state.passages[item] for item in state.order[start:end]])
            for state, (start, end) in chosen
        ]
        counts = [end - start for _, (start, end) in chosen]
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        for part in cut(np.arange(len(prompts)), lengths, self.model.wave_tokens):
            answered = self._within([prompts[row] for row in part], [counts[row] for row in part])
            for row, (permutation, response, logits) in zip(part, answered, strict=True):
                state, (start, end) = chosen[row]
                items = state.order[start:end]
                if logits is not None:
                    state.logits.update(zip(items, logits, strict=True))
                state.held.update(dict.fromkeys(items, len(state.records)))
                state.order[start:end] = [items[place] for place in permutation.order]
                state.records.append(WindowRecord(start, end, number, permutation, response, logits))

    def _within(self, prompts: list[np.ndarray], counts: list[int]) -> list[_Answer]:
        """Returns the answers to prompts; with on_window_error=keep, a failing window keeps its order."""
        if self.on_window_error == "raise":
            return self._answers(prompts, counts)
        try:
            return self._answers(prompts, counts)
        except RuntimeError as error:
            if len(prompts) == 1:
                failed = Permutation(tuple(range(counts[0])), "failed", reason=f"{type(error).__name__}: {error}")
                return [(failed, None, None)]
        pairs = zip(prompts, counts, strict=True)
        return [answer for prompt, count in pairs for answer in self._within([prompt], [count])]

    def _answers(self, prompts: list[np.ndarray], counts: list[int]) -> list[_Answer]:
        model, layout = self.model, self.model.inputs.layout
        if self.decode == "first_token":
            rows = decoding.first_logits(cast("ReadsIdentifiers", model), prompts).float().cpu().tolist()
            return [_by_logits(row[:count]) for row, count in zip(rows, counts, strict=True)]
        if self.decode == "constrained":
            orders = decoding.constrained(cast("ReadsIdentifiers", model), prompts, counts)
            return [(Permutation(tuple(order), "ok"), layout.identifiers.text(order), None) for order in orders]
        budget = max(layout.reserve(count) for count in counts) + model.settings.reasoning_tokens
        written = model.write(prompts, budget)
        thinking = (
            layout.header.rpartition("<think>")[1] != "" and "</think>" not in layout.header.rpartition("<think>")[2]
        )
        answers: list[_Answer] = []
        for ids, count in zip(written, counts, strict=True):
            text = str(model.tokenizer.decode([*layout.identifiers.prefix, *ids], skip_special_tokens=True))
            found = parse(text, count, layout.identifiers, layout.template.answer_pattern, thinking)
            answers.append((found, text, None))
        return answers

    def _ranked(self, state: _State) -> RankedList:
        count = len(state.order)
        scores = [float(count - place) for place in range(count)]
        logits = tuple(state.logits.get(item) for item in range(count))
        covered = len(state.records) == 1 and state.records[0].end == count and state.records[0].logits is not None
        if covered and len(set(logits)) == count:
            scores = [state.logits[item] for item in state.order]
        held = tuple(state.held.get(item) for item in range(count))
        return RankedList(tuple(state.order), tuple(scores), logits, held, tuple(state.records), self.decode)


_Answer = tuple[Permutation, "str | None", "tuple[float, ...] | None"]


def _by_logits(logits: Sequence[float]) -> _Answer:
    """Best first, ties in incoming order. Raises RuntimeError for a logit that is not a number."""
    if any(value != value for value in logits):
        raise RuntimeError("an identifier's logit is not a number")
    order = sorted(range(len(logits)), key=lambda place: -logits[place])  # The sort is stable.
    return Permutation(tuple(order), "ok"), None, tuple(logits)


@torch.inference_mode()
def slot_scores(model: ReadsIdentifiers, table: ExampleTable) -> np.ndarray:
    """[slots] float32 scores of every list of the table, on every rank; one rank processes each list.

    The scores order the candidates of one query; scores of different queries are not comparable.
    """
    reranker = ListwiseReranker(model, top_k=int(np.diff(table.offsets).max(initial=1)))
    lists = [example for example in range(len(table)) if len(table.slots(example))]
    sizes = np.array([int(table.lengths[table.candidates[table.slots(example)]].sum()) for example in lists])
    own = deal(sizes, processes.world_size())[processes.rank()]
    states = []
    for index in own:
        slots = table.slots(lists[index])
        passages = [np.asarray(table.tokens(int(row))) for row in table.candidates[slots]]
        states.append(
            _State(np.asarray(table.tokens(int(table.query[lists[index]]))), passages, list(range(len(slots))))
        )
    slots = np.concatenate([table.slots(lists[index]) for index in own]) if len(own) else np.zeros(0, dtype=np.int64)
    scores = np.zeros(len(slots), dtype=np.float32)
    start = 0
    for ranked in reranker._run(states):
        scores[start + np.array(ranked.order)] = ranked.scores
        start += len(ranked.order)
    values = torch.from_numpy(scores).to(model.device)
    if processes.world_size() > 1:
        return processes.place_rows(values, torch.from_numpy(slots), len(table.candidates)).cpu().numpy()
    output = np.zeros(len(table.candidates), dtype=np.float32)
    output[slots] = scores
    return output
