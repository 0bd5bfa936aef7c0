"""Pairs as token sequences: the tokenizer's own layout, templates, what is cut, and what text can never do."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rankpo.data.loaders.ranking import ListwiseDataLoader
from rankpo.data.table import open_table
from rankpo.data.text.tokens import answer_ids
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.reranker.inputs import RerankerInputs
from rankpo.models.reranker.layout import make_layout
from rankpo.models.reranker.settings import RerankerSettings
from rankpo.types import Example
from tests.tokenizers import FAMILIES, bert, llama, qwen

TEMPLATE = {"separator": "\n", "query_format": "query: {}", "document_format": "document: {}", "suffix": "\nrelevant:"}
PAIRS = [("how deep do moles dig?", "Moles dig to about 70 cm."), ("yes", "no"), ("(a) 12 x", "Ümläut, 13")]


def ids_of(inputs, query, document):
    return inputs.sequences_of([(query, document)]).input_ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_the_tokenizers_own_pair(family):
    tokenizer = FAMILIES[family]()
    inputs = RerankerInputs(tokenizer, RerankerSettings())
    sequences = inputs.sequences_of(PAIRS)
    encoded = [tokenizer(query, document) for query, document in PAIRS]
    assert [part.tolist() for part in sequences.input_ids.split(sequences.lengths.tolist())] == [
        item["input_ids"] for item in encoded
    ]
    if family == "bert":
        assert sequences.token_types.tolist() == [kind for item in encoded for kind in item["token_type_ids"]]
    else:
        assert sequences.token_types is None


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_template_stand_in_order(family):
    """bos · query: q · separator · document: d · suffix, each tokenised on its own."""
    tokenizer = FAMILIES[family]()
    inputs = RerankerInputs(tokenizer, RerankerSettings(head="decoder", **TEMPLATE))

    def plain(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first = {"qwen": [], "llama": ["<s>"], "roberta": ["<s>"], "bert": ["[CLS]"], "sentencepiece": ["<s>"]}[family]
    expected = tokenizer.convert_tokens_to_ids(first)
    for part in ("query: what", "\n", "document: worms", "\nrelevant:"):
        expected += plain(part)
    assert ids_of(inputs, "what", "worms") == expected


def test_add_eos_stands_last_and_needs_an_end_token():
    inputs = RerankerInputs(qwen(), RerankerSettings(head="decoder", add_eos=True, **TEMPLATE))
    assert ids_of(inputs, "a", "b")[-1] == inputs.tokenizer.eos_token_id
    tokenizer = qwen()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="add_eos=true, but the tokenizer has no end token"):
        RerankerInputs(tokenizer, RerankerSettings(head="decoder", add_eos=True, **TEMPLATE))


def test_a_document_with_special_tokens_is_text():
    """The end token in a document becomes letters: what follows it is still read."""
    tokenizer = qwen()
    inputs = RerankerInputs(tokenizer, RerankerSettings(head="decoder", **TEMPLATE))
    one, other = (ids_of(inputs, "q", f"x <|im_end|> {word}") for word in ("cats", "dogs"))
    assert tokenizer.eos_token_id not in one
    assert one != other
    byte = RerankerInputs(byte_tokenizer(), RerankerSettings())
    assert ids_of(byte, "q", "[SEP]").count(byte.tokenizer.sep_token_id) == 2
    assert len(ids_of(byte, "q", "[SEP]")) == 3 + 1 + 5


def test_special_tokens_of_a_template_are_special_and_braces_of_a_text_are_text():
    tokenizer = qwen()
    formats = {**TEMPLATE, "query_format": "<|im_start|>user\n{query}", "suffix": "<|im_end|>\n"}
    inputs = RerankerInputs(tokenizer, RerankerSettings(head="decoder", **formats))
    ids = ids_of(inputs, "{} {query} {instruction}", "{document}")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert "{} {query} {instruction}" in tokenizer.decode(ids)
    assert "{document}" in tokenizer.decode(ids)


def test_the_first_token_stands_once_when_the_template_brings_it():
    tokenizer = llama()
    for head in ("", "<s>"):
        formats = {**TEMPLATE, "query_format": head + "query: {}"}
        ids = ids_of(RerankerInputs(tokenizer, RerankerSettings(head="decoder", **formats)), "a", "b")
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


def test_the_instruction_is_part_of_the_head():
    inputs = RerankerInputs(
        qwen(), RerankerSettings(**{**TEMPLATE, "query_format": "{instruction} ? {}"}, instruction="Find {it}")
    )
    assert "Find {it} ? cats" in inputs.tokenizer.decode(ids_of(inputs, "cats", "b"))


def test_chat_template_is_cut_at_the_texts():
    tokenizer = qwen()
    inputs = RerankerInputs(tokenizer, RerankerSettings(head="causal_lm", chat_template=True, **TEMPLATE))
    text = "<|im_start|>user\nquery: cats\ndocument: dogs<|im_end|>\n<|im_start|>assistant\n\nrelevant:"
    assert tokenizer.decode(ids_of(inputs, "cats", "dogs")) == text
    assert inputs.layout.tail == "<|im_end|>\n<|im_start|>assistant\n\nrelevant:"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has none"),
        ("{{ messages[0]['content'] | upper }} {{ messages[0]['content'] }}", "omits, repeats or reorders"),
        ("{{ messages[0]['content'][9:] }}", "omits, repeats or reorders"),
        ("{{ messages[0]['content'] | replace(' ', '_') }}", "changes the text of model.query_format"),
    ],
)
def test_chat_templates_that_alter_the_texts_are_refused(template, message):
    tokenizer = qwen()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        make_layout(tokenizer, RerankerSettings(head="decoder", chat_template=True, **TEMPLATE))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"query_format": "no place"}, r"query_format must contain {} or {query} once"),
        ({"query_format": "{} {}"}, "once"),
        ({"document_format": "{query}"}, r"document_format must contain {} or {document} once"),
        ({"document_format": "{} {title}"}, "no other braces"),
        ({"suffix": "x"}, "separator=null"),
        ({"query_format": "{}?"}, "tail of query_format"),
        ({"head": "encoders"}, "head must be one of auto, encoder, decoder, causal_lm, got 'encoders'"),
        ({"head": "causal_lm", "separator": "", "add_eos": True}, "add_eos=true puts the end token before the answer"),
        ({"chat_template": True}, "needs head=decoder or causal_lm, got encoder"),
        ({"query_max_length": 3}, "query_max_length must be >= 8"),
        ({"max_length": 0}, "max_length must be >= 1 token, got 0"),
        ({"activation": "softmax"}, "activation must be one of identity, sigmoid"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RerankerSettings(**keys)


def room_of_sixteen(**keys) -> RerankerInputs:
    """U = 16 and m = 4, three fixed tokens."""
    return RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=19, min_document_tokens=4, **keys))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((3, 10), (3, 10)),
        ((3, 30), (3, 13)),
        ((12, 4), (12, 4)),
        ((13, 4), (12, 4)),
        ((14, 30), (12, 4)),
        ((40, 2), (14, 2)),
        ((40, 30), (12, 4)),
        ((20, 0), (16, 0)),
    ],
)
def test_what_is_cut(given, kept):
    """The document first, the query only for the document's last tokens."""
    inputs = room_of_sixteen()
    assert tuple(int(n) for n in inputs.cut(np.array(given[0]), np.array(given[1]))) == kept
    ids = ids_of(inputs, "q" * given[0], "d" * given[1])
    letters = [inputs.tokenizer.convert_tokens_to_ids(letter) for letter in "qd"]
    assert tuple(ids.count(letter) for letter in letters) == kept
    assert (ids[0], ids[-1]) == (inputs.tokenizer.cls_token_id, inputs.tokenizer.sep_token_id)
    assert int(inputs.lengths(np.array(given[0]), np.array(given[1]))) == len(ids)


def test_the_query_has_a_length_of_its_own():
    inputs = room_of_sixteen(query_max_length=8)
    assert [tuple(map(int, inputs.cut(np.array(q), np.array(30)))) for q in (5, 8, 40)] == [(5, 11), (8, 8), (8, 8)]


def test_a_query_of_ten_lengths_keeps_suffix_and_document():
    settings = RerankerSettings(head="decoder", max_length=64, min_document_tokens=5, **TEMPLATE)
    inputs = RerankerInputs(byte_tokenizer(), settings)
    ids = ids_of(inputs, "q" * 640, "d" * 30)
    text = inputs.tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == 64
    assert text.endswith("\ndocument: ddddd\nrelevant:")
    assert text.startswith("query: qqq")


def test_no_room_is_an_error():
    """3 fixed, 4 of a document and 8 of a query make 15."""
    RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=15, min_document_tokens=4))
    with pytest.raises(ValueError, match=r"max_length=14 is too small: 3 fixed tokens, .* need 15"):
        RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=14, min_document_tokens=4))


class Lists:
    name = "lists"

    def fingerprint(self):
        return "lists of the test"

    def examples(self):
        yield Example("q" * 5, ("a" * 3, "b" * 20), (1.0, 0.0), "first")
        yield Example("r" * 20, ("a" * 3, "c" * 30, "d"), (0.0, 1.0, 0.5), "second")


def table_of(tmp_path, inputs):
    return open_table(tmp_path, [Lists()], inputs.pieces(), lambda message: None)


def test_truncation_is_counted(tmp_path):
    """U 16, m 4. Kept of (5,3) all; (5,20) (5,11); (20,3) (13,3); (20,30) (12,4); (20,1) (15,1)."""
    inputs = room_of_sixteen()
    found = inputs.truncation(table_of(tmp_path, inputs))
    assert (found.pairs, found.documents_cut, found.queries_cut) == (5, 2, 3)
    assert found.tokens_dropped == 9 + 7 + 8 + 26 + 5
    assert found.longest == 53
    only_queries = RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=80, query_max_length=8))
    assert only_queries.truncation(table_of(tmp_path, only_queries)).first_cut == "second"
    assert "2 documents and 3 queries are truncated by 55 tokens in all, the first in example first" in found.summary()


def test_the_store_gives_what_texts_give(tmp_path):
    inputs = RerankerInputs(byte_tokenizer(), RerankerSettings(head="decoder", max_length=80, **TEMPLATE))
    table = table_of(tmp_path, inputs)
    pairs = [(example.query, text) for example in Lists().examples() for text in example.candidates]
    queries = np.repeat(np.asarray(table.query), np.diff(table.offsets))
    stored, given = (
        inputs.sequences(table, list(zip(queries, table.candidates, strict=True))),
        inputs.sequences_of(pairs),
    )
    assert torch.equal(stored.input_ids, given.input_ids)
    assert torch.equal(stored.lengths, given.lengths)
    assert stored.lengths.tolist() == inputs.lengths(table.lengths[queries], table.lengths[table.candidates]).tolist()


def test_a_batch_holds_each_pair_once(tmp_path):
    inputs = RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=80))
    loader = ListwiseDataLoader(table=table_of(tmp_path, inputs), batch_size=2, seed=0, shuffle=False)
    groups = [*loader.groups(0), *loader.groups(0)]
    batch = inputs.collate(loader.table, groups, reference=np.arange(5, dtype=np.float32))
    assert len(batch.sequences) == 5
    assert batch.queries is None
    assert torch.equal(batch.candidates[:2], batch.candidates[2:])
    rows = {len(group.candidates): row for group, row in zip(groups, batch.candidates, strict=True)}
    assert len(set(rows[3].tolist())) == 3
    for group, row in zip(groups, batch.candidates, strict=True):
        for candidate, place in zip(group.candidates, row.tolist(), strict=False):
            expected = inputs.sequences(loader.table, [(group.query, candidate)]).input_ids
            start = int(batch.sequences.lengths[:place].sum())
            assert torch.equal(batch.sequences.input_ids[start : start + len(expected)], expected)
    assert [row[: len(g.slots)].tolist() for g, row in zip(groups, batch.reference, strict=True)] == [
        g.slots.tolist() for g in groups
    ]
    assert inputs.costs(loader.table, groups).sum() == 2 * batch.sequences.num_tokens
    with pytest.raises(ValueError, match="reads a query together with its candidates"):
        inputs.collate(loader.table, groups, with_positives=True)


def test_answers_are_one_token_in_their_place():
    tokenizer = qwen()
    yes, no = answer_ids(tokenizer, ("yes", "no"), "relevant:\n")
    assert [tokenizer.decode([yes]), tokenizer.decode([no])] == ["yes", "no"]
    with pytest.raises(ValueError, match="'worms' is not one token of its own after 'relevant:"):
        answer_ids(tokenizer, ("worms", "no"), "relevant:\n")
    with pytest.raises(ValueError, match="the answers yes, yes are the same token"):
        answer_ids(tokenizer, ("yes", "yes"), "")


def test_answers_that_merge_with_the_prompt_or_are_unknown_are_refused():
    """' y' is one token of this tokenizer: behind a space, y is not its own."""
    tokenizer = qwen()
    merged = next(
        token for token in tokenizer.get_vocab() if len(token) == 2 and token[0] == "Ġ" and token[1].isalpha()
    )
    with pytest.raises(ValueError, match="not one token of its own after ' '"):
        answer_ids(tokenizer, (merged[1],), " ")
    letters = models.BPE(
        vocab={name: n for n, name in enumerate(["a", "b", "c", "bc", "ab"])}, merges=[("b", "c"), ("a", "b")]
    )
    reordered = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(letters))
    assert [reordered(text)["input_ids"] for text in ("ab", "abc")] == [[4], [0, 3]]
    with pytest.raises(ValueError, match="'c' is not one token of its own after 'ab'"):
        answer_ids(reordered, ("c",), "ab")
    with pytest.raises(ValueError, match="'日' is not one token"):
        answer_ids(bert(), ("日",), "")


@pytest.mark.parametrize("length", [8, 9, 13, 14, 20, 21, 50])
def test_slices_cover_a_document(length):
    """U 16, a query of 6, a head of 2: slices of 8 tokens of text, two of them shared with the one before."""
    inputs = RerankerInputs(
        byte_tokenizer(), RerankerSettings(max_length=19, min_document_tokens=4, document_format="D:{}")
    )
    document = np.arange(100, 102 + length)
    slices = inputs.slices(np.zeros(6, dtype=int), document)
    if length == 8:
        assert len(slices) == 1
    assert all(part[:2].tolist() == [100, 101] and len(part) <= 10 for part in slices)
    texts = [part[2:].tolist() for part in slices]
    assert texts[0] + [token for part in texts[1:] for token in part[2:]] == document[2:].tolist()
    assert all(before[-2:] == after[:2] for before, after in itertools.pairwise(texts))
