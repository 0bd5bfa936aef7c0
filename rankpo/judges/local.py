"""Local judge: a causal language model with the log-probabilities of the letters A and B in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.judges.base import Judge, JudgeStopped, Reply, words
from rankpo.judges.templates import Template
from rankpo.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

ANSWER = "Preferred:"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of their classes' names


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
        if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise FileNotFoundError(f"path={self.path}: no such folder; give a folder or a hub id")
        self.name = self.path
        self._loaded: tuple[object, object, tuple[list[int], tuple[int, int]]] | None = None
        self._lock = threading.Lock()

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return {"judge": self.name, "revision": self.revision, "messages": self.template.messages(query, a, b)}

    def unmarked(self) -> str | None:
        return None if self.template.is_marked else "judge.template.prompt"

    def count_cut(self, *texts: str) -> int:
        return self.template.count_cut(*texts)

    def ask(self, request: Mapping[str, Any]) -> Reply:
        import torch

        with self._lock, torch.inference_mode():
            tokenizer, model, (lead, letters) = self._load()
            ids = self._ids(tokenizer, request["messages"], lead).to(model.device)
            logits = model(input_ids=ids).logits[0, -1].float()
            share = torch.softmax(logits[list(letters)], 0)
        choice = "A" if share[0] >= share[1] else "B"
        usage = {"prompt_tokens": int(ids.shape[1]), "completion_tokens": 1}
        return Reply(words(choice, float(share.max())), self.name, usage)

    def _ids(self, tokenizer: Any, messages: list[dict[str, str]], lead: list[int]) -> Tensor:
        import torch

        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt + ANSWER, add_special_tokens=False)["input_ids"]
        else:
            prompt = "\n\n".join(message["content"] for message in messages)
            ids = tokenizer(f"{prompt}\n\n{ANSWER}")["input_ids"]
            if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
                ids = ids[:-1]  # an answer is to go on here
        return torch.tensor([ids + lead])

    def _load(self) -> tuple[Any, Any, tuple[list[int], tuple[int, int]]]:
        if self._loaded is None:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM

            from rankpo.models.loading import load_backbone, load_tokenizer, resolve

            source = resolve(self.path, revision=self.revision)
            tokenizer = load_tokenizer(source, self.trust_remote_code)
            trust = self.trust_remote_code
            check_language_model(self.path, AutoConfig.from_pretrained(source.path, trust_remote_code=trust))
            model: Any = load_backbone(source, trust_remote_code=trust, family=AutoModelForCausalLM).eval()
            model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._loaded = tokenizer, model, letter_ids(tokenizer)
        return self._loaded


def check_language_model(path: str, config: Any) -> None:
    """Raises JudgeStopped for weights of another kind: transformers would give them a random head without an error."""
    saved = (config.architectures or [""])[0]
    own_code = getattr(config, "auto_map", None)  # its classes may have any name
    if saved and not own_code and not saved.endswith(LANGUAGE_MODELS):
        raise JudgeStopped(
            f"judge.path={path} holds a {saved}, no causal language model; a cross-encoder, a reward model or a "
            f"bi-encoder judges by its scores: judge=scores judge.path={path}"
        )


def letter_ids(tokenizer: Any) -> tuple[list[int], tuple[int, int]]:
    """What stands between "Preferred:" and the letter ([], or the tokens of a blank), and the tokens A and B there.

    Proved in context. Raises ValueError where the tokenizer does not tell A and B apart by one token (an unknown word).
    """
    start = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    first, second = (tokenizer(f"{ANSWER} {letter}", add_special_tokens=False)["input_ids"] for letter in "AB")
    lead = first[len(start) : -1]
    alike = first[:-1] == second[:-1] == [*start, *lead]
    if not alike or first[-1] == second[-1] or tokenizer.unk_token_id in (first[-1], second[-1]):
        raise ValueError(f"the tokenizer does not tell {ANSWER!r} A and B apart by one token: {first}, {second}")
    return lead, (first[-1], second[-1])
