"""Layout of a pair: the fixed token ids around query and document, read from the tokenizer and verified.

before · query · between · document · after: the fixed parts are tokenised once, including special tokens. In the
texts, special tokens are tokenised as plain letters, so that a document cannot end its sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.data.text.tokens import fixed_ids, plain_ids, split_special
from rankpo.models.reranker.settings import RerankerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholders for query and document in a rendered template.
SENTINELS = ("QUERYPLACE7Q", "DOCUMENTPLACE7D")
PROBES = (
    ("first", "second"),
    ("how deep do moles dig?", "About 70 cm."),
    ("12 x", "(a) b; c"),
    ("Tür zu", "日本語 ok"),
)


@dataclass(frozen=True)
class PairLayout:
    """Fixed token ids around and between the two texts, and the plain text that is tokenised together with each.

    types: token types of before, query, between, document and after (one number for each text), or None if all are 0.
    native: whether the tokenizer's own encoding of a pair gives the same ids. tail: the text of `after`.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    query_prefix: str = ""
    document_prefix: str = ""
    types: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]] | None = None
    native: bool = False
    tail: str = ""

    @property
    def num_fixed(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def make_layout(tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings) -> PairLayout:
    """Returns the layout of these settings. Raises ValueError for a template that does not separate the texts."""
    if settings.separator is None and not settings.chat_template:
        layout = _native(tokenizer)
        query, document = (split_special(tokenizer, part.head) for part in (settings.query, settings.document))
        if query[0] or document[0]:
            raise ValueError("a format with special tokens needs a separator; set model.separator to a text")
        return PairLayout(
            layout.before, layout.between, layout.after, query[1], document[1], layout.types, layout.native
        )
    first, middle, last = _rendered(tokenizer, settings)
    query_fixed, query_plain = _cut(tokenizer, first, settings.query.head, "query_format")
    between, document_plain = _cut(tokenizer, middle, settings.document.head, "document_format")
    before = fixed_ids(tokenizer, query_fixed)
    around = SpecialTokens.learn(tokenizer)
    if before[: len(around.head)] != around.head:  # The template may include the first token.
        before = (*around.head, *before)
    after = fixed_ids(tokenizer, last + settings.suffix)
    if settings.add_eos:
        if tokenizer.eos_token_id is None:
            raise ValueError("model.add_eos=true, but the tokenizer has no end token; set it to false")
        after = (*after, tokenizer.eos_token_id)
    tail = last + settings.suffix
    return PairLayout(before, fixed_ids(tokenizer, between), after, query_plain, document_plain, tail=tail)


def _native(tokenizer: PreTrainedTokenizerBase) -> PairLayout:
    """Returns the tokenizer's own layout of a pair, derived from one pair and checked on others."""
    layout = _read_off(tokenizer, *PROBES[0])
    for query, document in PROBES[1:]:
        pieces = [ids for ids in plain_ids(tokenizer, [query, document])]
        joined = [*layout.before, *pieces[0], *layout.between, *pieces[1], *layout.after]
        full = tokenizer(query, document)["input_ids"]
        if joined != full:
            raise ValueError(
                f"the tokenizer encodes the pair ({query!r}, {document!r}) as {full}, but its parts give {joined}; "
                "set model.separator to a text"
            )
    return layout


def _read_off(tokenizer: PreTrainedTokenizerBase, query: str, document: str) -> PairLayout:
    encoded: Any = tokenizer(query, document, return_token_type_ids=True)
    full, types = encoded["input_ids"], encoded["token_type_ids"]
    first, second = plain_ids(tokenizer, [query, document])
    start = _find(full, first, 0)
    place = _find(full, second, start + len(first))
    ends = start + len(first), place + len(second)
    read = "token_type_ids" in tokenizer.model_input_names and any(types)
    return PairLayout(
        before=tuple(full[:start]),
        between=tuple(full[ends[0] : place]),
        after=tuple(full[ends[1] :]),
        types=(
            (tuple(types[:start]), types[start], tuple(types[ends[0] : place]), types[place], tuple(types[ends[1] :]))
            if read
            else None
        ),
        native=True,
    )


def _find(full: Sequence[int], part: Sequence[int], begin: int) -> int:
    for start in range(begin, len(full) - len(part) + 1):
        if list(full[start : start + len(part)]) == list(part):
            return start
    raise ValueError(
        f"the tokenizer's encoding of a pair {list(full)} does not contain {list(part)}; set model.separator to a text"
    )


def _cut(tokenizer: PreTrainedTokenizerBase, part: str, head: str, key: str) -> tuple[str, str]:
    """Splits the part before a text into its fixed tokens and the text to tokenise together with it."""
    plain = split_special(tokenizer, head)[1]
    if not part.endswith(plain):
        raise ValueError(f"the chat template changes the text of model.{key}: {part!r} does not end with {plain!r}")
    return part.removesuffix(plain), plain


def _rendered(tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings) -> tuple[str, str, str]:
    """Returns the text before, between and after the two texts."""
    query, document = settings.query, settings.document
    whole = (
        f"{query.head}{SENTINELS[0]}{query.tail}{settings.separator or ''}{document.head}{SENTINELS[1]}{document.tail}"
    )
    if settings.chat_template:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "model.chat_template=true, but the tokenizer has none; write it into the formats and suffix"
            )
        turns = [{"role": "user", "content": whole}]
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    if any(whole.count(sentinel) != 1 for sentinel in SENTINELS) or whole.find(SENTINELS[0]) > whole.find(SENTINELS[1]):
        raise ValueError("the chat template omits, repeats or reorders the texts; set model.chat_template=false")
    first, rest = whole.split(SENTINELS[0])
    middle, last = rest.split(SENTINELS[1])
    return first, middle, last
