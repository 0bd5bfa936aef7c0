"""Layout of a listwise prompt: the token ids of its fixed parts for every number of passages, and truncation."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import ChatFormat
from rankpo.data.text.identifiers import Identifiers, choose
from rankpo.data.text.prompt_templates import Parts, Place, PromptTemplate, joined
from rankpo.data.text.tokens import fixed_ids
from rankpo.models.listwise.settings import ListwiseSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "\ue000prompt\ue001"  # Private-use characters do not occur in texts.


class ListwiseLayout:
    """A template rendered for one tokenizer, with its chat format and with single-token identifiers.

    text_prefix, query_prefix: white space before a passage or query, which is tokenised together with it, so that words
    have the same ids as in running text. notes: deviations from the settings, for the log.
    Raises SchemeError for identifiers that are not one token, and ValueError for a chat template that omits the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ListwiseSettings) -> None:
        self.tokenizer = tokenizer
        self.template: PromptTemplate = settings.prompt
        self.notes: list[str] = []
        self.chat = ChatFormat.learn(tokenizer, settings.chat_template)
        self.before, self.after = self._around()
        self.end = fixed_ids(tokenizer, self.chat.ending)
        self.query_prefix, self.text_prefix = self._prefix("query"), self._prefix("text")
        last = self.template.content(["A", "B"], ["A", "B"])[-1]
        self.header = (last if isinstance(last, str) else "") + self.after
        self.identifiers: Identifiers = choose(tokenizer, self.template, self.header, settings.window)
        self.parts = lru_cache(maxsize=None)(self._parts)

    def _around(self) -> tuple[str, str]:
        """Returns the chat format before and after the user's turn, including the system turn and the answer's header."""
        system = self.template.system
        turns = [("system", system), ("user", SENTINEL)] if system else [("user", SENTINEL)]
        try:
            rendered = self.chat.prompt(turns)
            refused = system is not None and system.strip() not in rendered
        except BadRecord:
            refused, rendered = True, ""
        if refused:
            self.notes.append("the chat template has no system turn, so its text is added to the user's turn")
            rendered = self.chat.prompt([("user", f"{system}\n\n{SENTINEL}")])
        if rendered.count(SENTINEL) != 1:
            raise ValueError("the chat template omits or repeats the user's turn; set model.chat_template")
        before, after = rendered.split(SENTINEL)
        return before, after

    def _prefix(self, name: str) -> str:
        """Returns the white space before a placeholder if it is equal at all its occurrences."""
        parts = self.template.content(["A", "B"], ["A", "B"])
        fronts = {
            front[len(front.rstrip(" ")) :] if isinstance(front, str) else ""
            for front, part in zip(("", *parts), parts, strict=False)
            if part == Place(name)
        }
        return fronts.pop() if len(fronts) == 1 else ""

    def _parts(self, count: int) -> tuple[tuple[int, ...] | str, ...]:
        """Returns the parts of a prompt with `count` passages: ids of fixed text, and "query" or "text" placeholders."""
        own = self.identifiers
        labels = own.labels[:count]
        content = self.template.content(labels, [f"{own.open}{label}{own.close}" for label in labels])
        whole: Parts = self._with_chat(content)
        prefixes = {"query": self.query_prefix, "text": self.text_prefix}
        made: list[tuple[int, ...] | str] = []
        for index, part in enumerate(whole):
            if isinstance(part, Place):
                made.append(part.name)
                continue
            following = whole[index + 1] if index + 1 < len(whole) else None
            moved = prefixes[following.name] if isinstance(following, Place) else ""
            made.append(fixed_ids(self.tokenizer, part.removesuffix(moved) if moved else part))
        return (*made, own.prefix)

    def _with_chat(self, content: Parts) -> Parts:
        return joined([self.before, *content, self.after])

    @property
    def num_queries(self) -> int:
        """The number of occurrences of the query in a prompt."""
        return sum(part == "query" for part in self.parts(2))

    def num_fixed(self, count: int) -> int:
        """Returns the tokens of a prompt with `count` passages, without query and passages."""
        return sum(len(part) for part in self.parts(count) if not isinstance(part, str))

    def reserve(self, count: int) -> int:
        """Returns the tokens of a whole answer with its end token."""
        return self.identifiers.answer_length(count) + len(self.end)
