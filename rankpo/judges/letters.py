"""Letters: the log-probabilities that a causal language model gives to the answers A and B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rankpo.judges.base import JudgeStopped
from rankpo.models.families import CAUSAL_LM
from rankpo.models.loading import load_backbone, load_tokenizer, resolve

ANSWER = "Preferred:"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of their classes' names

Messages = Sequence[dict[str, str]]  # turns of a chat: role and content


@dataclass(frozen=True, kw_only=True)
class Letters:
    """A model with its tokenizer. lead: tokens between "Preferred:" and the letter. ids: of the tokens A and B there."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    lead: list[int]
    ids: tuple[int, int]

    @classmethod
    def load(cls, path: str, revision: str | None, *, trust_remote_code: bool, device: str | None) -> Letters:
        """device: None for a GPU where there is one. Raises JudgeStopped for weights that are no language model's."""
        source = resolve(path, revision=revision)
        tokenizer = load_tokenizer(source, trust_remote_code)
        check_language_model(path, AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code))
        model = load_backbone(source, trust_remote_code=trust_remote_code, family=CAUSAL_LM).eval()
        model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        lead, ids = letter_ids(tokenizer)
        return cls(tokenizer=tokenizer, model=model, lead=lead, ids=ids)

    @torch.inference_mode()
    def choose(self, messages: Messages) -> tuple[str, float, int]:
        """The likelier letter, its share of both letters' probability, and the tokens of the prompt."""
        ids = self._prompt(messages).to(self.model.device)
        logits = self.model(input_ids=ids).logits[0, -1].float()
        share = torch.softmax(logits[list(self.ids)], 0)
        return ("A" if share[0] >= share[1] else "B"), float(share.max()), int(ids.shape[1])

    def _prompt(self, messages: Messages) -> Tensor:
        """[1, T] tokens up to the letter."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = tokenizer(f"{prompt}{ANSWER}", add_special_tokens=False)["input_ids"]
        else:
            prompt = "\n\n".join(message["content"] for message in messages)
            ids = tokenizer(f"{prompt}\n\n{ANSWER}")["input_ids"]
            if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
                ids = ids[:-1]  # The answer continues here.
        return torch.tensor([ids + self.lead])


def check_language_model(path: str, config: PreTrainedConfig) -> None:
    """Raises JudgeStopped for weights of another kind: transformers would give them a random head without an error."""
    saved = (config.architectures or [""])[0]
    own_code = getattr(config, "auto_map", None)  # its classes may have any name
    if saved and not own_code and not saved.endswith(LANGUAGE_MODELS):
        raise JudgeStopped(
            f"judge.path={path} holds a {saved}, not a causal language model; for a cross-encoder, a reward model or a "
            f"bi-encoder, set judge=scores judge.path={path}"
        )


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], tuple[int, int]]:
    """Returns the tokens between "Preferred:" and the letter ([], or a blank), and the tokens of A and B there.

    The tokens are checked in context. Raises ValueError if A and B do not differ in exactly one token.
    """
    start = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    first, second = (tokenizer(f"{ANSWER} {letter}", add_special_tokens=False)["input_ids"] for letter in "AB")
    lead = first[len(start) : -1]
    alike = first[:-1] == second[:-1] == [*start, *lead]
    if not alike or first[-1] == second[-1] or tokenizer.unk_token_id in (first[-1], second[-1]):
        raise ValueError(f"the tokenizer does not tell {ANSWER!r} A and B apart by one token: {first}, {second}")
    return lead, (first[-1], second[-1])
