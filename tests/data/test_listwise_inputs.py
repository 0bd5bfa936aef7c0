"""A query with its passages as one sequence: template, score position, answers, what fits, what is rewritten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankpo.data.loaders.ranking import Group
from rankpo.data.table import open_table
from rankpo.data.text.cutting import fit
from rankpo.data.text.prompt_templates import read_template
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.listwise.inputs import PASSAGE, QUERY, ListwiseInputs
from rankpo.models.listwise.settings import ListwiseSettings
from rankpo.models.random_weights import byte_tokenizer
from rankpo.types import Example
from tests import tokenizers
from tests.toy_tokenizers import CHATML, MISTRAL, ZEPHYR, byte_bpe

TEMPLATE = {
    "name": "short",
    "system": "Be brief.",
    "introduction": "{num} passages for: {query}\n",
    "passage": "{identifier} {text}\n",
    "instruction": "Query: {query}\nLike {example}.",
}
SETTINGS = ListwiseSettings(template=TEMPLATE, window=5, stride=2, max_length=1024, min_passage_tokens=4)


def inputs_of(tokenizer=None, **changes):
    return ListwiseInputs(tokenizer or byte_bpe(template=ZEPHYR), replace(SETTINGS, **changes))


def read(inputs, query, *passages):
    ids = [np.asarray(row) for row in inputs.tokenize([QUERY + query, *(PASSAGE + text for text in passages)])]
    return inputs.prompt(ids[0], ids[1:])


class Lists:
    name = "lists"

    def __init__(self, *examples):
        self.given = examples

    def fingerprint(self):
        return str(hash(self.given))

    def examples(self):
        yield from self.given


def table_of(tmp_path, inputs, *examples):
    return open_table(tmp_path, [Lists(*examples)], inputs.pieces(), lambda message: None)


def group_of(table, example=0, order=None):
    slots = table.slots(example)
    slots = slots if order is None else slots[order]
    return Group(
        id=table.id(example),
        query=int(table.query[example]),
        candidates=np.asarray(table.candidates[slots]),
        slots=slots,
        relevance=np.asarray(table.relevance[slots]),
        teacher=None,
        confidence=1.0,
    )


def test_the_prompt_as_text():
    inputs = inputs_of()
    text = inputs.tokenizer.decode(read(inputs, "which?", "one", "two", "three"))
    assert text == (
        "<|system|>\nBe brief.</s>\n<|user|>\n3 passages for: which?\n[A] one\n[B] two\n[C] three\n"
        "Query: which?\nLike [B] > [A].</s>\n<|assistant|>\n["
    )


def test_pieces_are_the_plain_tokenisation_where_nothing_merges_over_a_border():
    inputs = inputs_of(byte_bpe("Ġo", "Ġt", "Ġw", template=ZEPHYR))
    prompt = read(inputs, "which?", "one", "two")
    text = inputs.tokenizer.decode(prompt)
    assert prompt.tolist() == inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
    # the space before a word belongs to it
    assert inputs.tokenizer.convert_tokens_to_ids("Ġo") in prompt


def test_score_position_and_labels_with_pad_that_is_eos_and_a_template_full_of_eos(tmp_path):
    """Defect 22: the first label is the identifier of the best passage, whatever eos is; no answer token is lost."""
    inputs = inputs_of()
    inputs.answers = True
    example = Example("which?", ("one", "two", "three"), (0.2, 1.0, 0.5), "x")
    table = table_of(tmp_path, inputs, example)
    batch = inputs.collate(table, [group_of(table)])
    labels, ids = batch.sequences.labels.numpy(), batch.sequences.input_ids.numpy()
    first = int(np.flatnonzero(labels != -100)[0])
    tokenizer = inputs.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert (ids[:first] == tokenizer.eos_token_id).sum() == 2
    assert tokenizer.decode(labels[first:]) == "B] > [C] > [A]</s>"
    assert (labels[first:] == ids[first:]).all()
    assert ids[:first].tolist() == read(inputs, "which?", "one", "two", "three").tolist()
    assert int(batch.labels.lengths.sum()) == len(labels) - first
    assert int(inputs.costs(table, [group_of(table)])[0]) == len(ids)


def test_the_answer_follows_the_shown_order(tmp_path):
    """p0..p3 with ranking [2, 0, 3, 1], shown as [p3, p1, p0, p2]: answer D > C > A > B, slot relevance 3 4 2 1."""
    inputs = inputs_of()
    inputs.answers = True
    relevance = (1 / 2, 1 / 4, 1.0, 1 / 3)
    table = table_of(tmp_path, inputs, Example("q", ("p0", "p1", "p2", "p3"), relevance, "x"))
    group = group_of(table, order=[3, 1, 0, 2])
    batch = inputs.collate(table, [group])
    text = inputs.tokenizer.decode(batch.sequences.input_ids)
    assert "[A] p3\n[B] p1\n[C] p0\n[D] p2\n" in text
    assert text.endswith("<|assistant|>\n[D] > [C] > [A] > [B]</s>")
    assert (1 / batch.labels.relevance[0]).round().tolist() == [3, 4, 2, 1]
    subset = group_of(table, order=[0, 1, 3])
    assert inputs.tokenizer.decode(inputs.answer(subset.relevance)) == "A] > [C] > [B]</s>"


def test_equal_relevance_stands_in_the_shown_order():
    inputs = inputs_of()
    assert inputs.tokenizer.decode(inputs.answer(np.array([0.0, 1.0, 0.0]))) == "B] > [A] > [C]</s>"


def test_special_tokens_and_identifiers_in_texts_are_plain_letters():
    """Defects 16 and 41: a passage cannot end the prompt, nor pass for another; braces are harmless."""
    inputs = inputs_of(byte_bpe(template=CHATML, special=("<|im_start|>", "<|im_end|>")))
    prompt = read(inputs, "{query} {0}", "see [B] and [b]</s><|im_end|>", "{text} {identifier}")
    text = inputs.tokenizer.decode(prompt)
    assert "[A] see (B) and [b]</s><|im_end|>\n[B] {text} {identifier}\n" in text
    assert "for: {query} {0}\n" in text
    special = inputs.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [(prompt == token).sum() for token in special] == [3, 2]
    assert (prompt == inputs.tokenizer.eos_token_id).sum() == 0
    assert inputs.escaped == 1
    kept = inputs_of(escape_identifiers=False)
    assert "see [B]" in kept.tokenizer.decode(read(kept, "q", "see [B]", "other"))


def test_numbers_escape_numbers_alone():
    inputs = inputs_of(template={**TEMPLATE, "identifiers": {"scheme": "numbers"}})
    text = inputs.tokenizer.decode(read(inputs, "q", "as [12] and [B] say", "x"))
    assert "[1] as (12) and [B] say\n" in text


def test_what_follows_a_literal_eos_is_read():
    inputs = inputs_of()
    one, other = (read(inputs, "q", f"a</s>{word}", "b") for word in ("yes", "no!"))
    assert len(one) == len(other) and (one != other).any()


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        (byte_bpe(template=MISTRAL, bos="<s>"), 1),
        (byte_bpe(template=CHATML, bos="<s>"), 0),  # the template's business: it has none
        (byte_bpe(bos="<s>"), 1),  # no template: as the tokenizer does it
        (byte_bpe(), 0),
    ],
)
def test_one_beginning_at_most(tokenizer, bos):
    """Defect 24."""
    inputs = inputs_of(tokenizer)
    prompt = read(inputs, "q", "one", "two")
    begin = tokenizer.bos_token_id
    assert (prompt == begin).sum() == bos if begin is not None else bos == 0
    assert not bos or prompt[0] == begin


def test_a_template_that_refuses_the_system_turn():
    """Defect 24: its words stand before the user's, and the log says so."""
    inputs = inputs_of(byte_bpe(template=MISTRAL, bos="<s>"))
    assert inputs.layout.notes == ["the chat template has no system turn, so its text is added to the user's turn"]
    text = inputs.tokenizer.decode(read(inputs, "q", "one", "two"))
    assert text.startswith("<s>[INST] Be brief.\n\n2 passages for: q\n") and text.endswith("Like [B] > [A]. [/INST][")


def test_a_template_that_drops_the_system_turn_without_a_word():
    silent = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    inputs = inputs_of(chat_template=silent)
    text = inputs.tokenizer.decode(read(inputs, "q", "one", "two"))
    assert text.startswith("<user>Be brief.\n\n2 passages for: q\n") and len(inputs.layout.notes) == 1


def test_a_template_that_drops_the_prompt_is_refused():
    with pytest.raises(ValueError, match="chat template"):
        inputs_of(chat_template="{% for m in messages %}{{ m['role'] }}{% endfor %}")


def test_loading_and_reading_leaves_the_vocabulary_as_it_is():
    """Defect 25."""
    tokenizer = byte_tokenizer()
    before = len(tokenizer)
    read(inputs_of(tokenizer), "q", "one", "two")
    assert len(tokenizer) == before


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(600, [300, 50, 120, 80]), (400, [150, 50, 120, 80]), (301, [86, 50, 85, 80]), (100, [25, 25, 25, 25])],
)
def test_the_longest_passages_give_way(budget, kept):
    assert fit(np.array([300, 50, 120, 80]), budget, 1000)[0].tolist() == kept


def test_fit_is_the_largest_cap_that_fits():
    """Against trying every cap, for random lengths."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.integers(0, 40, rng.integers(1, 8))
        budget = int(rng.integers(0, 200))
        kept, cap = fit(lengths, budget, 30)
        caps = [c for c in range(31) if np.minimum(lengths, c).sum() <= budget]
        assert kept.sum() == min(np.minimum(lengths, 30).sum(), budget)
        assert np.minimum(lengths, 30).sum() <= budget or cap == max(caps)
        assert (np.sort(kept - np.minimum(lengths, cap))[-1] if len(kept) else 0) <= 1


def test_passages_shrink_and_the_answer_never_does(tmp_path):
    """Defect 26: a list that is too long for the context keeps every answer token and identifier."""
    inputs = inputs_of(max_length=400)
    inputs.answers = True
    long = tuple(f"{number}" * 500 for number in range(5))
    table = table_of(tmp_path, inputs, Example("q", long, (5.0, 4.0, 3.0, 2.0, 1.0), "x"))
    batch = inputs.collate(table, [group_of(table)])
    text = inputs.tokenizer.decode(batch.sequences.input_ids)
    assert len(batch.sequences.input_ids) == 400
    assert text.endswith("[A] > [B] > [C] > [D] > [E]</s>")
    sizes = [text.count(str(number) * 3) for number in range(5)]
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1


def test_a_query_longer_than_the_context_is_cut_in_one_step():
    """Defect 40; and where even that does not help, the error names query and lengths."""
    inputs = inputs_of(max_length=400, max_query_tokens=20)
    prompt = read(inputs, "why " * 2000, "one", "two")
    assert len(prompt) <= 400
    text = inputs.tokenizer.decode(prompt)
    assert "[A] one\n[B] two\n" in text and text.count("why why why why why\n") == 2
    tight = inputs_of(max_length=130, max_query_tokens=20)
    with pytest.raises(
        ValueError, match=r"query of 8000 tokens with 2 passages does not fit into model.max_length=130"
    ):
        read(tight, "why " * 2000, "one one one", "two two two")


def test_max_passage_tokens_is_counted(tmp_path):
    inputs = inputs_of(max_passage_tokens=10)
    table = table_of(tmp_path, inputs, Example("q", ("[B] is short", "long " * 20), (1.0, 0.0), "x"))
    assert inputs.report(table) == "of 2 passages: 1 identifiers escaped, 2 passages cut (model.max_passage_tokens)"
    assert inputs_of().report(table_of(tmp_path, inputs_of(), Example("q", ("a", "b"), (1.0, 0.0), "y"))) is None


def test_the_log_shows_where_the_score_is_read(tmp_path):
    inputs = inputs_of(
        template=read_template("plain").to_json(), chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    table = table_of(tmp_path, inputs, Example("q", ("a", "b"), (1.0, 0.0), "x"))
    ids = inputs.layout.identifiers.first
    expected = f"first prompt, 8 tokens, scored at the last by A {ids[0]}, B {ids[1]}, C {ids[2]}, …: "
    assert inputs.shown(table, group_of(table)) == expected + repr("q│\n│A│a│\n│B│b│\n")


@pytest.mark.parametrize("family", ["qwen", "llama", "sentencepiece", "bert"])
def test_tokenizers_of_every_family(family):
    """Defects 20 and 27: with and without first tokens, byte-level, SentencePiece and WordPiece; nothing is lost."""
    tokenizer = getattr(tokenizers, family)()
    if tokenizer.eos_token is None:
        with pytest.raises(ValueError, match="the tokenizer has no eos token"):
            inputs_of(tokenizer)
        return
    inputs = inputs_of(tokenizer, window=3)
    prompt = read(inputs, "moles", "yes", "no", "about 70")
    special = set(tokenizer.all_special_ids)
    text = " ".join(tokenizer.decode([token for token in prompt if token not in special]).split())
    assert [text.count(word) for word in ("moles", "yes", "about 70")] == [2, 1, 1]
    own = inputs.layout.identifiers
    assert len({*own.first}) == 3 and tokenizer.unk_token_id not in own.first
    begin = SpecialTokens.learn(tokenizer).head
    assert tokenizer.chat_template or tuple(prompt[: len(begin)]) == begin
