"""Local judge: a causal language model with the log-probabilities of the letters A and B in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rankpo.judges.base import Judge, Reply, words
from rankpo.judges.orders import order_words
from rankpo.judges.templates import ListTemplate, Template, for_lists, unmarked
from rankpo.types import Prompt

if TYPE_CHECKING:
    from rankpo.judges.letters import Letters, Messages


@dataclass(kw_only=True)
class LocalJudge(Judge):
    """path: a folder or hub id of a causal language model. Its chat template is used if it has one.

    The answer starts with "Preferred:", and its next token is the likelier of A and B; the confidence is the share of
    the likelier letter. A list is ordered by the log-probabilities of its letters behind "Ranking:", in one forward pass,
    as in FIRST (https://arxiv.org/abs/2406.15657). device: None uses a GPU if there is one.
    """

    path: str
    template: Template
    list_template: ListTemplate | None = None
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    price: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise FileNotFoundError(f"path={self.path}: no such folder; give a folder or a hub id")
        self.name = self.path
        self._letters: Letters | None = None
        self._lock = threading.Lock()

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return {"judge": self.name, "revision": self.revision, "messages": self.template.messages(query, a, b)}

    def request_list(self, query: Prompt, passages: Sequence[str]) -> dict[str, object]:
        messages = for_lists(self.list_template).messages(query, passages)
        return {"judge": self.name, "revision": self.revision, "messages": messages, "num_passages": len(passages)}

    def unmarked(self, *, lists: bool = False) -> str | None:
        return unmarked(self.template, self.list_template, lists)

    def count_cut(self, *texts: str, lists: bool = False) -> int:
        return (for_lists(self.list_template) if lists else self.template).count_cut(*texts)

    def ask(self, request: Mapping[str, object]) -> Reply:
        from rankpo.judges.letters import Letters

        with self._lock:
            if self._letters is None:
                self._letters = Letters.load(
                    self.path, self.revision, trust_remote_code=self.trust_remote_code, device=self.device
                )
            messages, count = cast("Messages", request["messages"]), cast("int", request.get("num_passages", 0))
            if count:
                ranking, num_tokens = self._letters.order(messages, count)
                answer = order_words(ranking)
            else:
                choice, share, num_tokens = self._letters.choose(messages)
                answer = words(choice, share)
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 1}
        return Reply(answer, self.name, usage)
