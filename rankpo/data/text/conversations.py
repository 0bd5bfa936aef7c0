"""Conversations as text: roles, chat templates, and the prompt and completion that a causal language model reads.

A prompt is plain text, or a tuple of (role, content) turns. Its completion is the content of the assistant's next turn.
Prompt and completion are rendered and tokenised separately, so that the prompt is a prefix of prompt + completion and the
position of the first scored token is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.rendering import (
    SENTINEL,
    chosen_template,
    closing_tag,
    cut_ending,
    letters,
    opened_thought,
    render,
    with_generation_prompt,
)
from rankpo.types import Prompt, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
QUESTION: tuple[Turn, ...] = (("user", "question"),)
PROBES: dict[str, tuple[Turn, ...]] = {
    "conversations with a system turn": (("system", "instruction"), *QUESTION),
    "conversations of several turns": (*QUESTION, ("assistant", "answer"), ("user", "another")),
}
ALIASES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def role(name: str) -> str:
    """The canonical name of a role. Raises ValueError for an unknown role."""
    chosen = ALIASES.get(name, name)
    if chosen not in ROLES:
        raise ValueError(f"role {name!r} is not known; allowed: {', '.join((*ROLES, *ALIASES))}")
    return chosen


def plain_text(prompt: Prompt) -> str:
    """A prompt for models that read text: the content of a single turn, or one `role: content` line for each turn."""
    if isinstance(prompt, str):
        return prompt
    return prompt[0][1] if len(prompt) == 1 else "\n".join(f"{name}: {content}" for name, content in prompt)


def prompt_record(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt for JSON files: text, or turns as objects with role and content."""
    return prompt if isinstance(prompt, str) else [{"role": name, "content": content} for name, content in prompt]


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A tokenizer's chat template, split into the text before an answer and the answer with its end.

    For every conversation, `prompt(turns) + completion(turns, answer)` equals the text of the template, up to the token
    that ends the assistant's turn. transformers renders both.

    template: Jinja text: the given template, or that of the tokenizer, or the default. A generation prompt is added if it
    is missing. tail: the text that the template adds after an answer. ending: the part of the tail that a model
    generates, up to its special tokens, or eos if the tail has no special token. opening: the text that the template adds
    between its generation prompt and a plain answer, such as a space or an empty block of thoughts; the model generates
    it. opened: the beginning of the answer in the generation prompt, such as `<think>`. strips: the sides, "left" and
    "right", on which the template strips white space of an answer. notes: remarks about the template for the log.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    tail: str
    ending: str
    opening: str = ""
    opened: str = ""
    strips: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> ChatFormat:
        """Renders conversations of several forms and compares them with their prompts.

        Raises ValueError for a template that does not render the assistant's answer exactly once, or whose text of a
        conversation does not begin with the text of its prompt, and for a tokenizer without eos.
        """
        chosen = chosen_template(tokenizer, template)
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no eos token: nothing could end a completion")
        notes = []
        before, tail = _around(tokenizer, chosen, SENTINEL)
        plain = render(tokenizer, chosen, QUESTION, generation=False)
        asked = render(tokenizer, chosen, QUESTION, generation=True)
        header = before[len(plain) :].rstrip(" ") if before.startswith(plain) else ""
        if asked == plain and header.strip():
            chosen, asked = with_generation_prompt(chosen, header), plain + header
            notes.append(f"the chat template has no generation prompt: {header!r}, its header of an answer, becomes it")
        opening, opened = _between(asked, before)
        ending = cut_ending(tail, _behind_earlier(tokenizer, chosen, tail), tokenizer)
        if not tail.startswith(ending):
            notes.append(f"the chat template ends an answer with {tail!r}: {tokenizer.eos_token} is put behind it")
        if begun := opened or opened_thought(asked):
            notes.append(f"the chat template's generation prompt opens {begun!r}: answers have to go on from there")
        left, right = (text[:1] for text in _blanks(tokenizer, chosen, opening, tail))
        strips = frozenset(side for side, kept in (("left", left), ("right", right)) if kept != " ")
        learned = cls(
            tokenizer=tokenizer,
            template=chosen,
            tail=tail,
            ending=ending,
            opening=opening,
            opened=opened,
            strips=strips,
        )
        return replace(learned, notes=(*notes, *learned._refusals()))

    def _refusals(self) -> Iterator[str]:
        """Yields the reasons why conversations with a system turn or several turns are not supported, if any."""
        for name, turns in PROBES.items():
            try:
                prompt = self.prompt(turns)
                opened = self._opens(prompt)
                self.behind(prompt, turns, f"{opened}{closing_tag(opened) or ''}answer")
            except BadRecord as error:
                yield f"{name} do not fit: {error}"

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text before the assistant's next words, which ends with the header of its turn or its unfinished turn.

        Raises BadRecord for a conversation that the template rejects, or whose last turn it does not render.
        """
        if not _continues(turns):
            return render(self.tokenizer, self.template, turns, generation=True)
        begun = (*turns[:-1], ("assistant", turns[-1][1] + SENTINEL))
        text, found, _ = render(self.tokenizer, self.template, begun, generation=False).rpartition(SENTINEL)
        if not found or (len(turns) > 1 and not text.startswith(self.prompt(turns[:-1]))):
            raise BadRecord("the chat template cannot go on from the assistant's turn that ends the prompt")
        return text

    def completion(self, turns: Sequence[Turn], content: str, *, finished: bool = True) -> str:
        """The text that follows `prompt(turns)` for the answer `content`, including its end.

        A prompt that ends with an assistant's turn is continued. finished: False omits the end, for a truncated answer.
        Raises BadRecord if the template's text of the whole conversation does not continue the prompt.
        """
        return self.behind(self.prompt(turns), turns, content, finished=finished)

    def behind(self, prompt: str, turns: Sequence[Turn], content: str, *, finished: bool = True) -> str:
        """Like `completion`, with a given `prompt(turns)`."""
        earlier = turns[-1][1] if _continues(turns) else ""
        whole_turns = (*(turns[:-1] if _continues(turns) else turns), ("assistant", earlier + content))
        whole = render(self.tokenizer, self.template, whole_turns, generation=False)
        if not whole.endswith(self.tail):
            raise BadRecord(f"the chat template ends this answer otherwise than with {self.tail!r}")
        whole = whole[: len(whole) - len(self.tail)]
        opened = self._opens(prompt)
        if whole.startswith(prompt):
            text = self._shown(content, opened, whole[len(prompt) :])
        elif opened and not earlier and whole.startswith(prompt.removesuffix(opened)):
            text = _after_opening(content, opened)
        else:
            raise BadRecord(
                "the chat template's text of the whole conversation does not begin with its text of the prompt; set "
                "model.chat_template to one that leaves earlier turns as they are"
            )
        closing = closing_tag(opened)
        if not finished:
            return text
        if closing is not None and closing not in text:
            raise BadRecord(
                f"the prompt opens {opened.strip()}, and the answer never writes {closing}: {content[:60]!r}"
            )
        return text + self.ending

    def _opens(self, prompt: str) -> str:
        """The beginning of the answer at the end of a prompt, such as `<think>` with a line break, or ""."""
        return self.opened if self.opened and prompt.endswith(self.opened) else opened_thought(prompt)

    def _shown(self, content: str, opened: str, text: str) -> str:
        """The template's text after the prompt, without a tag that the prompt has already opened.

        Raises BadRecord if a part of the answer is missing, or if an empty block of thoughts precedes those of the answer.
        """
        if letters(content) not in letters(opened + text):
            raise BadRecord("the chat template does not show the whole answer; set model.chat_template")
        if opened and text.lstrip().startswith(opened.strip()):
            return _after_opening(text, opened)
        block = self.opening.strip()
        tag = block.partition(closing_tag(block) or "\n")[0].strip() if block else ""
        if block and closing_tag(block) and text.startswith(self.opening) and content.lstrip().startswith(tag):
            raise BadRecord(
                f"the chat template puts {block!r} before an answer that has its own {tag}; set model.chat_template to "
                "one that does not, or leave the thoughts out"
            )
        return text

    def content(self, turns: Sequence[Turn], written: str) -> str:
        """The answer in the generated text after `prompt(turns)`, without its end; the inverse of `completion`."""
        answer = written.rstrip() if "right" in self.strips else written
        if _continues(turns):
            return answer
        begun = self.opened if self.opened and self.prompt(turns).endswith(self.opened) else ""
        answer = begun + answer.removeprefix(self.opening)
        return answer.lstrip() if "left" in self.strips else answer


def shortened(turns: Sequence[Turn]) -> tuple[Turn, ...] | None:
    """The conversation without its oldest exchange. System turns are kept, followed by a user's turn.

    Returns None if only the last user turn, and the turns after it, are left.
    """
    system = tuple(turn for turn in turns if turn[0] == "system")
    rest = [turn for turn in turns if turn[0] != "system"]
    users = [index for index, (name, _) in enumerate(rest) if name == "user"]
    if len(users) < 2:
        return None
    return (*system, *rest[users[1] :])


def _continues(turns: Sequence[Turn]) -> bool:
    """Whether the prompt ends with a turn of the assistant, which the completion continues."""
    return bool(turns) and turns[-1][0] == "assistant"


def _around(tokenizer: PreTrainedTokenizerBase, template: str, content: str) -> tuple[str, str]:
    """The template's text before and after an answer. Raises ValueError unless it renders the answer exactly once."""
    whole = render(tokenizer, template, (*QUESTION, ("assistant", content)), generation=False)
    if whole.count(SENTINEL) != 1:
        how = "does not show" if SENTINEL not in whole else "repeats"
        raise ValueError(f"the chat template {how} the assistant's content; set model.chat_template")
    before, _, tail = whole.partition(SENTINEL)
    return before, tail


def _behind_earlier(tokenizer: PreTrainedTokenizerBase, template: str, tail: str) -> str:
    """The template's text after an answer that is not the last; the given tail if it cannot be determined."""
    try:
        whole = render(tokenizer, template, (*QUESTION, ("assistant", SENTINEL), ("user", "another")), generation=False)
    except BadRecord:
        return tail
    return whole.rpartition(SENTINEL)[2] if SENTINEL in whole else tail


def _after_opening(content: str, opened: str) -> str:
    """The answer without the tag that the prompt has opened. Raises BadRecord if it neither opens nor closes the tag."""
    tag, closing = opened.strip(), closing_tag(opened)
    begun = content.lstrip()
    if begun.startswith(tag):
        rest, blank = begun.removeprefix(tag), opened.rpartition(tag)[2]
        return rest.lstrip("\n") if "\n" in blank else rest.removeprefix(blank)
    if closing is not None and closing in content:  # as a model writes it behind the prompt
        return content
    raise BadRecord(
        f"the chat template's generation prompt opens {tag}, and the answer neither begins with it nor closes it; "
        f"give the answers their {tag}…{closing or ''}, or set model.chat_template to one that does not open it"
    )


def _blanks(tokenizer: PreTrainedTokenizerBase, template: str, opening: str, tail: str) -> tuple[str, str]:
    """The rendered white space for a space on the left and on the right of an answer."""
    plain, _ = _around(tokenizer, template, SENTINEL)
    before, after = _around(tokenizer, template, f" {SENTINEL} ")
    return before[len(plain) :], after.removesuffix(tail)


def _between(asked: str, before: str) -> tuple[str, str]:
    """Returns (opening, opened), from a prompt with generation prompt and the text before an answer. Raises ValueError."""
    if before.startswith(asked):
        return before[len(asked) :], ""
    opened = asked.removeprefix(before)
    if not asked.startswith(before) or not opened.strip():
        if (thought := opened_thought(asked)) and before.startswith(asked.removesuffix(thought)):
            return "", thought  # A plain answer gets an empty block, which does not begin like the generation prompt.
        raise ValueError(
            f"the chat template's generation prompt ends in {asked[-20:]!r}, and its text before an answer in "
            f"{before[-20:]!r}: the one does not begin the other; set model.chat_template"
        )
    return "", opened
