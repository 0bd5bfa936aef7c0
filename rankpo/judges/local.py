"""Local judge: a causal language model with the log-probabilities of the letters A and B in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rankpo.judges.base import Judge, Reply, words
from rankpo.judges.templates import Template
from rankpo.types import Prompt

if TYPE_CHECKING:
    from rankpo.judges.letters import Letters, Messages


@dataclass(kw_only=True)
class LocalJudge(Judge):
    """path: a folder or hub id of a causal language model. Its chat template is used if it has one.

    The answer starts with "Preferred:", and its next token is the likelier of A and B; the confidence is the share of
    the likelier letter. device: None uses a GPU if there is one.
    """

    path: str
    template: Template
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

    def unmarked(self) -> str | None:
        return None if self.template.is_marked else "judge.template.prompt"

    def count_cut(self, *texts: str) -> int:
        return self.template.count_cut(*texts)

    def ask(self, request: Mapping[str, object]) -> Reply:
        from rankpo.judges.letters import Letters

        with self._lock:
            if self._letters is None:
                self._letters = Letters.load(
                    self.path, self.revision, trust_remote_code=self.trust_remote_code, device=self.device
                )
            choice, share, num_tokens = self._letters.choose(cast("Messages", request["messages"]))
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 1}
        return Reply(words(choice, share), self.name, usage)
