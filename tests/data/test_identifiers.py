"""The proof that identifiers are single tokens where they are read, on tokenizers that merge brackets and letters."""

from __future__ import annotations

import pytest

from rankpo.data.text.identifiers import SchemeError, choose, prove
from rankpo.data.text.prompt_templates import PromptTemplate
from rankpo.models.random_weights import byte_tokenizer
from tests.toy_tokenizers import byte_bpe

HEADER = "Rank:\n"


def template(scheme="auto", **keys):
    return PromptTemplate(
        name="x", introduction="{query}", passage="{identifier} {text}\n", instruction="", scheme=scheme, **keys
    )


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_letters_on_separate_brackets():
    """Bracket and letter apart, as in Mistral's: the bracket is forced, the letter is read."""
    tokenizer = byte_tokenizer()
    own = prove(tokenizer, template(), HEADER, "letters", 26)
    assert own.canonical and own.scheme == "letters" and len(own) == 26
    assert own.prefix == ids(tokenizer, "[")
    assert own.first == own.later == tuple(ids(tokenizer, letter)[0] for letter in own.labels)
    assert own.answer([2, 0]) == list(ids(tokenizer, "C] > [A]"))
    assert own.answer_length(2) == len(own.answer([2, 0]))
    assert own.text([2, 0]) == "[C] > [A]"


def test_merged_brackets_are_read_as_they_are_written():
    """'[A' is one token at the first place and, behind ' >', ' [' + 'A' later: two ids for one letter."""
    merges = ("Ġ[", "[A", "[B", "[C")
    tokenizer = byte_bpe(*merges)
    own = prove(tokenizer, template(), HEADER, "letters", 3)
    assert own.prefix == ()
    assert own.first == tuple(tokenizer.convert_tokens_to_ids([f"[{letter}" for letter in "ABC"]))
    assert own.later == tuple(tokenizer.convert_tokens_to_ids(list("ABC")))
    assert tuple(own.answer([1, 2, 0])) == ids(tokenizer, "[B] > [C] > [A]")


def test_one_letter_that_merges_otherwise_is_refused_by_name():
    """With '[C' not merged beside '[A' and '[B' some would read the wrong token."""
    tokenizer = byte_bpe("[A", "[B", "[D", "[E")
    with pytest.raises(
        SchemeError, match=r"scheme=letters with window=5: C are not tokenised like the others.*numbers"
    ):
        choose(tokenizer, template("letters"), HEADER, 5)
    assert prove(tokenizer, template(), HEADER, "letters", 2).first == tuple(
        tokenizer.convert_tokens_to_ids(["[A", "[B"])
    )


def test_two_equal_halves_of_the_alphabet_never_pass():
    tokenizer = byte_bpe("[A", "[B")
    with pytest.raises(SchemeError):
        prove(tokenizer, template(), HEADER, "letters", 4)


def test_auto_takes_the_first_scheme_that_passes():
    assert choose(byte_tokenizer(), template(), HEADER, 20).scheme == "letters"
    broken = byte_bpe("[A", "[B", "[D", "[E")
    assert choose(broken, template(), HEADER, 5).scheme == "numbers"
    # digits one by one: ten passages are too many for numbers, and bare letters pass
    assert choose(broken, template(), HEADER, 10).scheme == "bare_letters"
    assert choose(byte_tokenizer(), template("numbers"), HEADER, 9).scheme == "numbers"
    with pytest.raises(SchemeError, match=r"numbers with window=10: 10 are not tokenised like the others"):
        choose(byte_tokenizer(), template("numbers"), HEADER, 10)


def test_pieces_where_nothing_is_canonical():
    """'[A' merged, ' A' merged with the header, digits merged with the bracket: only forced pieces are left."""
    tokenizer = byte_bpe("[A", "[1", "ĊA", "A]")
    own = choose(tokenizer, template(), HEADER, 10)
    assert own.scheme == "pieces" and not own.canonical
    assert own.prefix == ids(tokenizer, "[")
    assert own.first == own.later == tuple(ids(tokenizer, letter)[0] for letter in own.labels)
    answer = own.answer([0, 1])
    assert tokenizer.decode(answer) == "A] > [B]"


def test_identifiers_that_merge_with_the_end_of_the_prompt_fail():
    """The header's line break joins the bracket: the prompt would not be a prefix of prompt and answer."""
    tokenizer = byte_bpe("Ċ[")
    with pytest.raises(SchemeError):
        prove(tokenizer, template(), HEADER, "letters", 5)
    assert prove(tokenizer, template(), HEADER, "bare_letters", 5).canonical


def test_too_many_passages_for_letters():
    with pytest.raises(SchemeError, match="26 identifiers, and window=27 needs more"):
        prove(byte_tokenizer(), template(), HEADER, "letters", 27)
    with pytest.raises(SchemeError, match=r"no scheme of .* gives 30 identifiers"):
        choose(byte_tokenizer(), template(), HEADER, 30)


def test_special_tokens_are_no_identifiers():
    tokenizer = byte_bpe(special=("B",))
    with pytest.raises(SchemeError):
        prove(tokenizer, template(), HEADER, "bare_letters", 3)
