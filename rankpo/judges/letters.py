"""Letters: the log-probabilities that a causal language model gives to the answers A and B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rankpo.judges.base import JudgeStopped
from rankpo.judges.orders import letters
from rankpo.models.families import CAUSAL_LM
from rankpo.models.loading import load_backbone, load_tokenizer, resolve

ANSWER, LIST_ANSWER = "Preferred:", "Ranking:"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of their classes' names

Messages = Sequence[dict[str, str]]  # turns of a chat: role and content


@dataclass(frozen=True, kw_only=True)
class Letters:
    """A model with its tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel

    @classmethod
    def load(cls, path: str, revision: str | None, *, trust_remote_code: bool, device: str | None) -> Letters:
        """device: None for a GPU where there is one. Raises JudgeStopped for weights that are no language model's."""
        source = resolve(path, revision=revision)
        tokenizer = load_tokenizer(source, trust_remote_code)
        check_language_model(path, AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code))
        model = load_backbone(source, trust_remote_code=trust_remote_code, family=CAUSAL_LM).eval()
        model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        return cls(tokenizer=tokenizer, model=model)

    def choose(self, messages: Messages) -> tuple[str, float, int]:
        """The likelier letter, its share of both letters' probability, and the tokens of the prompt."""
        logits, num_tokens = self._logits(messages, ANSWER, 2)
        share = torch.softmax(logits, 0)
        return ("A" if share[0] >= share[1] else "B"), float(share.max()), num_tokens

    def order(self, messages: Messages, count: int) -> tuple[list[int], int]:
        """The positions of `count` passages by the logits of their letters, best first, and the tokens of the prompt."""
        logits, num_tokens = self._logits(messages, LIST_ANSWER, count)
        return logits.argsort(descending=True, stable=True).tolist(), num_tokens

    @torch.inference_mode()
    def _logits(self, messages: Messages, answer: str, count: int) -> tuple[Tensor, int]:
        """The logits [count] of the first letters behind the beginning of an answer, and the tokens of the prompt."""
        lead, wanted = letter_ids(self.tokenizer, answer, count)
        ids = torch.tensor([self._prompt(messages, answer) + lead], device=self.model.device)
        return self.model(input_ids=ids).logits[0, -1].float()[list(wanted)], int(ids.shape[1])

    def _prompt(self, messages: Messages, answer: str) -> list[int]:
        """Tokens up to the end of the beginning of an answer."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids: list[int] = tokenizer(f"{prompt}{answer}", add_special_tokens=False)["input_ids"]
        else:
            prompt = "\n\n".join(message["content"] for message in messages)
            ids = tokenizer(f"{prompt}\n\n{answer}")["input_ids"]
            if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
                ids = ids[:-1]  # The answer continues here.
        return ids


def check_language_model(path: str, config: PreTrainedConfig) -> None:
    """Raises JudgeStopped for weights of another kind: transformers would give them a random head without an error."""
    saved = (config.architectures or [""])[0]
    own_code = getattr(config, "auto_map", None)  # its classes may have any name
    if saved and not own_code and not saved.endswith(LANGUAGE_MODELS):
        raise JudgeStopped(
            f"judge.path={path} holds a {saved}, not a causal language model; for a cross-encoder, a reward model or a "
            f"bi-encoder, set judge=scores judge.path={path}"
        )


def letter_ids(
    tokenizer: PreTrainedTokenizerBase, answer: str = ANSWER, count: int = 2
) -> tuple[list[int], tuple[int, ...]]:
    """Returns the tokens between the beginning of an answer and a letter ([], or a blank), and those of the letters there.

    The tokens are checked in context. Raises ValueError if the first `count` letters do not differ in exactly one token.
    """
    labels = letters(count)
    start = tokenizer(answer, add_special_tokens=False)["input_ids"]
    found = [tokenizer(f"{answer} {letter}", add_special_tokens=False)["input_ids"] for letter in labels]
    lead, ids = found[0][len(start) : -1], tuple(row[-1] for row in found)
    alike = all(row[:-1] == [*start, *lead] for row in found)
    if not alike or len(set(ids)) < count or tokenizer.unk_token_id in ids:
        shown = f"{labels[0]} and {labels[1]}" if count == 2 else f"{labels[0]} to {labels[-1]}"
        raise ValueError(f"the tokenizer does not tell {answer!r} {shown} apart by one token: {found}")
    return lead, ids
