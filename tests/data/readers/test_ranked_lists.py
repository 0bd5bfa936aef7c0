"""Lists with their order from files: our records, RankLLM's conversations, what is refused with its line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rankpo.data.dataset import Pieces
from rankpo.data.generated.toy_lists import ToyLists
from rankpo.data.loaders.listwise_prompts import ListwisePromptDataLoader
from rankpo.data.readers.passes import BadRecords
from rankpo.data.readers.ranked_lists import RankedLists
from rankpo.data.table import open_table
from rankpo.data.text.list_conversations import RankedRecord, from_conversation, to_conversation
from rankpo.data.text.prompt_templates import PromptTemplate, read_template, shipped

NATIVE = {
    "id": "n1",
    "query": "who?",
    "passages": ["one", {"title": "T", "text": "two"}, "three"],
    "ranking": [2, 0, 1],
}
PROMPT = (
    "I will provide you with 3 passages, each indicated by a numerical identifier []. Rank the passages based on their "
    "relevance to the search query: who is it?.\n\n[1] first passage\nwith a second line\n[2] see [3] and [1]\n"
    "[3] last\nSearch Query: who is it?.\nRank the 3 passages above."
)

RESULT = {  # what RankLLM's DataWriter writes: the reranked candidates, with the scores of the first stage
    "query": {"text": "who?", "qid": 7},
    "candidates": [
        {"docid": "d3", "score": 0.1, "doc": {"contents": "three"}},
        {"docid": "d1", "score": 9.5, "doc": {"title": "T", "segment": "one", "url": "x"}},
        {"docid": "d2", "score": 4.0, "doc": {"body": "two"}},
    ],
}


def conversation(answer="[2] > [3] > [1]", prompt=PROMPT, **names):
    turns = [("system", "Be good."), ("human", prompt), ("gpt", answer)]
    first, second = names.get("keys", ("from", "value"))
    roles = names.get("roles", {})
    return {"id": "c1", "conversations": [{first: roles.get(name, name), second: text} for name, text in turns]}


def lists(tmp_path, *records, name="lists.jsonl", **keys):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(list(records)))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return RankedLists(name="l", path=str(path), **keys)


def test_our_own_records(tmp_path):
    (example,) = lists(tmp_path, NATIVE).examples()
    assert example.query == "who?" and example.id == "n1"
    assert example.candidates == ("one", "T two", "three")
    assert example.relevance == (1 / 2, 1 / 3, 1.0)


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.json"])
def test_results_of_rank_llm_are_lists_from_the_best_on(tmp_path, name):
    dataset = lists(tmp_path, RESULT, {**NATIVE, "prompt": "Find: "}, name=name)
    first, second = dataset.examples()
    assert (first.query, first.id, first.query_prompt) == ("who?", "7", None)
    assert first.candidates == ("three", "T one", "two") and first.relevance == (1.0, 1 / 2, 1 / 3)
    assert (second.id, second.query_prompt) == ("n1", "Find: ")
    assert (dataset.report.formats, dataset.report.rows) == (["results", "ranking"], 2)


def test_linear_partial_and_scored(tmp_path):
    (example,) = lists(tmp_path, NATIVE, relevance_from_rank="linear").examples()
    assert example.relevance == (0.5, 0.0, 1.0)
    partial = {**NATIVE, "ranking": [1]}
    (example,) = lists(tmp_path, partial).examples()
    assert example.relevance == (0.0, 1.0, 0.0)
    scored = {key: value for key, value in NATIVE.items() if key != "ranking"} | {"scores": [0.5, 0.5, 3]}
    (example,) = lists(tmp_path, scored).examples()
    assert example.relevance == (0.5, 0.5, 3.0)


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.json"])
@pytest.mark.parametrize(
    "names", [{}, {"keys": ("role", "content"), "roles": {"human": "user", "gpt": "assistant"}}], ids=["from", "role"]
)
def test_conversations_in_every_form(tmp_path, name, names):
    """Defect 30: arrays and lines, from/value and role/content; number targets train (28)."""
    (example,) = lists(tmp_path, conversation(**names), name=name).examples()
    assert example.query == "who is it?"
    assert example.candidates == ("first passage\nwith a second line", "see [3] and [1]", "last")
    assert np.argsort(-np.array(example.relevance)).tolist() == [1, 2, 0]


def test_letters(tmp_path):
    letters = PROMPT.replace("\n[1] ", "\n[A] ").replace("\n[2] ", "\n[B] ").replace("\n[3] ", "\n[C] ")
    (example,) = lists(tmp_path, conversation("[C] > [A] > [B]", letters)).examples()
    assert example.candidates[0].startswith("first passage")
    assert np.argsort(-np.array(example.relevance)).tolist() == [2, 0, 1]


RANK_LLM = PromptTemplate.from_mapping(
    {
        "system_message": "You rank passages.",
        "prefix": "I will provide you with {num} passages, each indicated by a numerical identifier []. Rank the passages "
        "based on their relevance to the search query: {query}.\n\n",
        "body": "[{rank}] {candidate}\n",
        "suffix": "Search Query: {query}.\nRank the {num} passages above.",
    }
)
NASTY_QUERIES = ("what is [2]?", "two\nlines?", "two\n\n[1] lines\nQuery: x", "Search Query: y.", "who. ", "5 passages")
NASTY_PASSAGES = (
    ("one", "two\nlines", "three"),
    ("one\n[2] not the second\n[B] nor that", "two", "three\n[4] nor a fourth\n[D] x"),
    ("one", "two\n  [3] indented\n [C] indented", "three\nSearch Query: what is this?.\nQuery: what is [2]?"),
    ("[2] at once", "[B] at once", "Query: two\nlines?\n\nQuery: x\n[1] once more\n[A] y"),
    ("with 2 passages\n[3]", "are 9 passages\n[4]", "a\n\n\nb"),
)


@pytest.mark.parametrize("scheme", ["letters", "numbers"])
@pytest.mark.parametrize("template", [*shipped(), "rank_llm"])
def test_there_and_back(template, scheme):
    """Whatever stands in query and passages, and whichever of our templates wrote it."""
    chosen = RANK_LLM if template == "rank_llm" else read_template(template)
    for query in NASTY_QUERIES:
        for passages in NASTY_PASSAGES:
            record = RankedRecord(query.strip(), passages, (1, 2, 0))
            turns = to_conversation(record, chosen, scheme)
            assert from_conversation({"conversations": turns}) == record


def test_lines_that_cannot_be_told_apart_are_refused(tmp_path):
    doubtful = PROMPT.replace("with a second line", "[2] with a second line")
    with pytest.raises(BadRecords, match=r"lists.jsonl:1: several lines begin with \[2\], and nothing says which"):
        list(lists(tmp_path, conversation(prompt=doubtful)).examples())
    # no more passages than are stated, and no line of a passage for the one that repeats the query
    inside = PROMPT.replace("[3] last", "[3] last\nSearch Query: not this.\n[4] of the last")
    (example,) = lists(tmp_path, conversation(prompt=inside)).examples()
    assert example.candidates[2] == "last\nSearch Query: not this.\n[4] of the last"
    assert example.query == "who is it?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (conversation("[2] > [3]"), r"no permutation of 3 passages \(missing 1\)"),
        (conversation("[2] > [3] > [3] > [1]"), r"no permutation of 3 passages \(duplicate 1\)"),
        (conversation("[2] > [4] > [3] > [1]"), r"no permutation of 3 passages \(out of range 1\)"),
        (conversation("Sure: [2] > [3] > [1]"), "the answer holds more than identifiers"),
        (conversation("no idea"), r"no permutation of 3 passages \(no identifier\)"),
        (conversation(prompt="Rank nothing"), "fewer than two passages"),
        (conversation(prompt=PROMPT.replace("Search Query", "Anfrage")), "no line 'Search Query"),
        (conversation(prompt=PROMPT.replace("Search Query: who", "Search Query: what")), "the introduction asks for"),
        ({"conversations": [{"from": "human", "value": PROMPT}]}, "no turn of the gpt"),
        ({"conversations": [{"from": "judge", "value": "x"}]}, "role 'judge' is not known"),
        ({**NATIVE, "ranking": [0, 0, 1]}, "ranking has position 0 more than once"),
        ({**NATIVE, "ranking": [0, 3]}, "ranking has position 3; allowed: 0 to 2"),
        ({**NATIVE, "passages": ["one"]}, "passages must be a list of two or more, got 1"),
        ({**NATIVE, "passages": ["one", " "]}, r"passages\[1\] is empty"),
        ({**NATIVE, "scores": [1, 2]}, r"scores must have one number for each of passages \(3\), got 2"),
        ({"query": "x", "passages": ["a", "b"]}, "needs a ranking"),
        ({**NATIVE, "ranking": []}, "ranking is empty"),
        ({**NATIVE, "prompt": ["x"]}, "prompt must be a text, got list"),
        ({**RESULT, "candidates": RESULT["candidates"][:1]}, "candidates must be a list of two or more, got 1"),
        ({**RESULT, "candidates": [{"docid": "a"}] * 2}, r"candidates\[0\] must have a doc with one of text, segment"),
        ({**RESULT, "candidates": [{"doc": {"url": "x"}}] * 2}, r"candidates\[0\]\.doc has none of text, .*url"),
        ({**RESULT, "candidates": [{"doc": {"text": " "}}] * 2}, r"candidates\[0\]\.doc\.text is empty"),
        ({**RESULT, "query": {"qid": "7"}}, r"query\.text"),
        ({"passages": ["a", "b"], "ranking": [0]}, "no field 'query'"),
    ],
)
def test_bad_records_with_their_line(tmp_path, record, message):
    """Defect 28: before the first step, by file and line."""
    with pytest.raises(BadRecords, match=rf"datasets.l: lists.jsonl:2: .*{message}"):
        list(lists(tmp_path, NATIVE, record).examples())
    skipping = lists(tmp_path, NATIVE, record, on_bad_record="skip")
    assert len(list(skipping.examples())) == 1 and len(skipping.bad) == 1


def test_settings(tmp_path):
    with pytest.raises(ValueError, match=r"set either path .* or hub"):
        RankedLists(name="x")
    with pytest.raises(ValueError, match="relevance_from_rank must be one of reciprocal, linear, got 'log'"):
        lists(tmp_path, NATIVE, relevance_from_rank="log")
    with pytest.raises(ValueError, match="split must be set with hub"):
        RankedLists(name="x", hub="a/b")
    one, two = lists(tmp_path, NATIVE), lists(tmp_path, NATIVE, relevance_from_rank="linear")
    assert one.fingerprint() != two.fingerprint() and len(one.fingerprint()) == 32


# the loader


def loader_of(tmp_path, num_passages=6, num_examples=400, **keys):
    pieces = Pieces(lambda texts: [[ord(letter) for letter in text] for text in texts], "", "", "letters")
    data = ToyLists(name="t", num_passages=num_passages, num_examples=num_examples)
    table = open_table(tmp_path, [data], pieces, lambda message: None)
    return ListwisePromptDataLoader(table=table, batch_size=8, seed=1, **keys)


def groups_of(loader, epoch=0):
    return {group.id: group.slots.tolist() for group in (loader.group(epoch, item) for item in loader.items)}


def test_lists_stay_as_they_are_without_augmentation(tmp_path):
    loader = loader_of(tmp_path, shuffle_candidates=0.0, variable_size=0.0)
    for slots in groups_of(loader).values():
        assert len(slots) == 6 and slots == sorted(slots)


def test_shuffling_and_sizes_have_their_shares(tmp_path):
    """Half of the lists are shuffled; of the half that is cut, sizes 2 to 6 are equally likely; both are redrawn."""
    loader = loader_of(tmp_path)
    first, again, second = groups_of(loader), groups_of(loader), groups_of(loader, epoch=1)
    assert first == again
    assert sum(first[name] != second[name] for name in first) > 250
    sizes = np.bincount([len(slots) for slots in first.values()], minlength=7)
    # 400 · (½ + ½ · 1/5) whole lists and 400 · ½ · 1/5 of each other size
    assert sizes[6] == pytest.approx(240, abs=30) and sizes[2:6] == pytest.approx([40] * 4, abs=20)
    moved = np.mean([slots != sorted(slots) for slots in first.values()])
    assert 0.38 < moved < 0.5  # short lists may stay as they are


def test_turning_one_knob_leaves_the_others_draws(tmp_path):
    both = groups_of(loader_of(tmp_path))
    cut = groups_of(loader_of(tmp_path, shuffle_candidates=0.0))
    assert {name: sorted(slots) for name, slots in both.items()} == cut


def test_long_lists_give_a_draw_each_epoch(tmp_path):
    loader = loader_of(tmp_path, max_candidates=4, shuffle_candidates=0.0, variable_size=0.0)
    first, second = groups_of(loader), groups_of(loader, epoch=1)
    assert all(len(slots) == 4 and slots == sorted(slots) for slots in first.values())
    assert sum(first[name] != second[name] for name in first) > 300


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shuffle_candidates": 1.5}, r"dataloader.shuffle_candidates must be in \[0, 1\], got 1.5"),
        ({"min_size": 1}, "dataloader.min_size must be in 2 to max_candidates=20, got 1"),
    ],
)
def test_errors_of_the_loader(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        loader_of(tmp_path, **keys)
