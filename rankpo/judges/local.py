"""A causal language model in this process: the log-probabilities of the letters A and B, read in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rankpo.judges.base import Judge, Reply, words
from rankpo.judges.templates import Template
from rankpo.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

ANSWER = "Preferred:"


@dataclass(kw_only=True)
class LocalJudge(Judge):
    """path: a folder or hub id of a causal language model. Its chat template is used where it has one.

    The answer is started with "Preferred:", and its next token is A or B, whichever is likelier; the confidence is
    their share of each other. device: None for a GPU where there is one.
    """

    path: str
    template: Template
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    price: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.path
        self._loaded: tuple[Any, Any, tuple[int, int]] | None = None
        self._lock = threading.Lock()

    def request(self, query: Prompt, a: str, b: str) -> dict[str, Any]:
        return {"judge": self.name, "revision": self.revision, "messages": self.template.messages(query, a, b)}

    def ask(self, request: Mapping[str, Any]) -> Reply:
        import torch

        with self._lock, torch.inference_mode():
            tokenizer, model, letters = self._load()
            ids = self._ids(tokenizer, request["messages"]).to(model.device)
            logits = model(input_ids=ids).logits[0, -1].float()
            share = torch.softmax(logits[list(letters)], 0)
        choice = "A" if share[0] >= share[1] else "B"
        usage = {"prompt_tokens": int(ids.shape[1]), "completion_tokens": 1}
        return Reply(words(choice, float(share.max())), self.name, usage)

    def _ids(self, tokenizer: Any, messages: list[dict[str, str]]) -> Tensor:
        import torch

        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt + ANSWER, add_special_tokens=False)["input_ids"]
        else:
            prompt = "\n\n".join(message["content"] for message in messages)
            ids = tokenizer(f"{prompt}\n\n{ANSWER}")["input_ids"]
            if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
                ids = ids[:-1]  # an answer is to go on here
        return torch.tensor([ids])

    def _load(self) -> tuple[Any, Any, tuple[int, int]]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM

            from rankpo.models.loading import load_backbone, load_tokenizer, resolve

            source = resolve(self.path, revision=self.revision)
            tokenizer = load_tokenizer(source, self.trust_remote_code)
            trust = self.trust_remote_code
            model: Any = load_backbone(source, trust_remote_code=trust, family=AutoModelForCausalLM).eval()
            model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._loaded = tokenizer, model, letter_ids(tokenizer)
        return self._loaded


def letter_ids(tokenizer: Any) -> tuple[int, int]:
    """The tokens that A and B are after "Preferred:", proved in context.

    Raises ValueError where one of them is more than one token, or both are the same (an unknown word).
    """
    start = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    found = []
    for letter in ("A", "B"):
        ids = tokenizer(f"{ANSWER} {letter}", add_special_tokens=False)["input_ids"]
        common = next(
            (n for n, (x, y) in enumerate(zip(start, ids, strict=False)) if x != y), min(len(start), len(ids))
        )
        rest = ids[common:]
        if not rest or len(set(rest)) != len(rest):
            raise ValueError(f"the tokenizer writes {ANSWER + ' ' + letter!r} as {ids}: no token is {letter}")
        found.append(rest)
    differing = [pair for pair in zip(*found, strict=False) if pair[0] != pair[1]]
    if len(found[0]) != len(found[1]) or len(differing) != 1 or tokenizer.unk_token_id in differing[0]:
        raise ValueError(f"the tokenizer does not tell {ANSWER!r} A and B apart by one token: {found}")
    return differing[0]
