"""Turns as text: roles, chat templates, and the pieces (prompt, completion) that a causal language model reads.

A prompt is plain text, or a tuple of (role, content) turns; its completion is the content of the assistant's next
turn. Prompt and completion are rendered and tokenised apart, so that the prompt is a prefix of prompt + completion
by construction and the first scored token is known, never searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.types import Prompt, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# for tokenizers without a template; eos ends the assistant's turns alone, as it will end what the model writes
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SENTINEL = "\ue000completion\ue001"  # private-use letters: no template and no text holds them


def role(name: str) -> str:
    """The role under its own name. Raises ValueError for one that is not known."""
    chosen = ALIASES.get(name, name)
    if chosen not in ROLES:
        raise ValueError(f"role {name!r} is not known; allowed: {', '.join((*ROLES, *ALIASES))}")
    return chosen


def plain_text(prompt: Prompt) -> str:
    """A prompt for models that read text: a single turn's content, or one `role: content` line for each turn."""
    if isinstance(prompt, str):
        return prompt
    return prompt[0][1] if len(prompt) == 1 else "\n".join(f"{name}: {content}" for name, content in prompt)


def prompt_record(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON files hold it: text, or turns as objects with role and content."""
    return prompt if isinstance(prompt, str) else [{"role": name, "content": content} for name, content in prompt]


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's chat template, cut into what precedes a completion and what ends it.

    template: jinja, or None for the tokenizer's, or where it has none the default one. ending: what the template puts
    behind an assistant's content up to and including its first special token, where a model stops writing; eos where
    the template puts nothing special there. strips: the template strips white space around a content.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    ending: str
    strips: bool

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> ChatFormat:
        """Renders one short conversation and looks at it.

        Raises ValueError for a template that does not show the assistant's content, and for a tokenizer without eos.
        """
        chosen = template or tokenizer.chat_template or DEFAULT_TEMPLATE
        if not isinstance(chosen, str):
            raise ValueError(f"the tokenizer has several chat templates ({', '.join(chosen)}); set model.chat_template")
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no eos token: nothing could end a completion")
        turns = (("user", "question"), ("assistant", f" {SENTINEL} "))
        before, found, ending = _render(tokenizer, chosen, turns, generation=False).rpartition(SENTINEL)
        if not found:
            raise ValueError("the chat template does not show the assistant's content; set model.chat_template")
        strips = not (before.endswith(" ") and ending.startswith(" "))
        ending = ending if strips else ending.removeprefix(" ")
        return cls(tokenizer, chosen, _cut_ending(ending, tokenizer), strips)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text before the assistant's next turn, its header included."""
        return _render(self.tokenizer, self.template, turns, generation=True)

    def completion(self, content: str) -> str:
        """The text of the assistant's turn after its header."""
        return (content.strip() if self.strips else content) + self.ending


def shortened(turns: Sequence[Turn]) -> tuple[Turn, ...] | None:
    """The conversation without its oldest exchange: system turns stay, and it begins with a user's turn again.

    None where only the last user turn (and what follows it) is left.
    """
    system = tuple(turn for turn in turns if turn[0] == "system")
    rest = [turn for turn in turns if turn[0] != "system"]
    users = [index for index, (name, _) in enumerate(rest) if name == "user"]
    if len(users) < 2:
        return None
    return (*system, *rest[users[1] :])


def _render(tokenizer: PreTrainedTokenizerBase, template: str, turns: Sequence[Turn], generation: bool) -> str:
    messages = [{"role": name, "content": content} for name, content in turns]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generation
    )
    assert isinstance(text, str)
    return text


def _cut_ending(ending: str, tokenizer: PreTrainedTokenizerBase) -> str:
    special = {token for token in tokenizer.all_special_tokens if token}
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [ending.find(token) + len(token) for token in special if token in ending]
    return ending[: min(ends)] if ends else ending.rstrip() + str(tokenizer.eos_token)
