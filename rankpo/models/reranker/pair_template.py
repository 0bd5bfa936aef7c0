"""Formats of rerankers whose tokenizer renders a query and a document by a chat template.

sentence-transformers 6 stores such rerankers with the modality `message`: the query and the document are turns with
these roles, and the default prompt is a system turn before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rankpo.data.text.tokens import answer_ids, split_special
from rankpo.errors import ConfigError
from rankpo.models.reranker.layout import PROBES, SENTINELS, make_layout
from rankpo.models.reranker.settings import RerankerSettings

ARGUMENTS = ("add_generation_prompt", "enable_thinking", "continue_final_message")
FORMATS = ("query_format", "separator", "document_format", "suffix")


@dataclass(frozen=True, kw_only=True)
class PairTemplate:
    """A tokenizer with a chat template for pairs.

    prompt: the system turn, or "". arguments: keywords of the template. structured: whether a content is a list of parts.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    prompt: str
    arguments: Mapping[str, Any]
    structured: bool

    @classmethod
    def of(cls, folder: Path, prompt: str, arguments: Mapping[str, Any], structured: bool) -> PairTemplate:
        """Opens the tokenizer of a folder. Raises ConfigError for an argument with an unknown effect."""
        if strange := [name for name in arguments if name not in ARGUMENTS]:
            raise ConfigError([f"{folder}: the argument {strange[0]} of the chat template is not supported by rankpo"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(folder=folder, tokenizer=tokenizer, prompt=prompt, arguments=arguments, structured=structured)

    def settings(self) -> dict[str, str]:
        """Returns the formats with which rankpo's tokens of a pair are those of the template.

        Raises ConfigError for a template that does not separate the texts, or whose tokens no formats reproduce.
        """
        try:
            parts = self._parts()
            expected = [self._ids(*probe) for probe in PROBES]
            for found in self._candidates(*parts):
                if [_ids_of(self.tokenizer, found, *probe) for probe in PROBES] == expected:
                    return {name: str(getattr(found, name)) for name in FORMATS}
        except (TemplateError, TypeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise ConfigError([f"{self.folder}: the chat template does not fit a pair of texts: {words}"]) from error
        raise ConfigError(
            [f"{self.folder}: rankpo cannot reproduce the tokens of the chat template; choose another model"]
        )

    def answer_words(self, ids: Sequence[int], tail: str | None) -> list[str]:
        """Returns the words of answer tokens. tail: the text before the answer; None if it is unknown.

        Raises ConfigError for a token that is not written as a word after that text.
        """
        words = [str(self.tokenizer.decode([number])) for number in ids]
        if tail is None:
            return words
        try:
            found = answer_ids(self.tokenizer, words, tail)
        except ValueError as error:
            raise ConfigError([f"{self.folder}: {error}"]) from error
        if list(found) != list(ids):
            named = ", ".join(map(repr, words))
            raise ConfigError([f"{self.folder}: the answer tokens {list(ids)} are not those of the words {named}"])
        return words

    def _turns(self, query: str, document: str) -> list[dict[str, Any]]:
        system = [("system", self.prompt)] if self.prompt else []
        return [
            {"role": role, "content": [{"type": "text", "text": text}] if self.structured else text}
            for role, text in (*system, ("query", query), ("document", document))
        ]

    def _ids(self, query: str, document: str) -> list[int]:
        turns = self._turns(query, document)
        return list(self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **self.arguments))

    def _parts(self) -> tuple[str, str, str]:
        """The text before, between and after the texts. Raises ValueError unless each is there once, in this order."""
        whole = str(self.tokenizer.apply_chat_template(self._turns(*SENTINELS), tokenize=False, **self.arguments))
        counts = [whole.count(sentinel) for sentinel in SENTINELS]
        if counts != [1, 1] or whole.find(SENTINELS[0]) > whole.find(SENTINELS[1]):
            raise ValueError("it omits, repeats or reorders them")
        first, rest = whole.split(SENTINELS[0])
        middle, last = rest.split(SENTINELS[1])
        return first, middle, last

    def _candidates(self, first: str, middle: str, last: str) -> Iterator[RerankerSettings]:
        """Settings that differ in the border between the separator and the text that is tokenised with the document."""
        fixed, plain = split_special(self.tokenizer, middle)
        line = plain.rfind("\n") + 1
        for end in dict.fromkeys((line, 0, len(plain))):
            yield RerankerSettings(
                head="decoder",
                query_format=f"{first}{{}}",
                separator=fixed + plain[:end],
                document_format=f"{plain[end:]}{{}}",
                suffix=last,
            )


def _ids_of(tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings, query: str, document: str) -> list[int]:
    layout = make_layout(tokenizer, settings)
    texts = [layout.query_prefix + query, layout.document_prefix + document]
    first, second = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [*layout.before, *first, *layout.between, *second, *layout.after]
