"""Which candidates are positives: lists, labels of 0 and 1, or a threshold; never a score above 0."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rankpo.data.batch import labels_of
from rankpo.data.loaders.listwise_prompts import ListwisePromptDataLoader
from rankpo.data.loaders.ranking import ContrastiveDataLoader, ListwiseDataLoader, PairedPreferenceDataLoader
from rankpo.data.loaders.unpaired_preference import UnpairedPreferenceDataLoader
from rankpo.data.readers.ranked_lists import RankedLists
from rankpo.data.readers.records import Records
from rankpo.data.relevance import UnknownRelevance
from rankpo.data.table import open_table
from rankpo.losses.listwise import ListNetLoss, SoftmaxLoss
from rankpo.losses.pointwise import PointwiseLoss
from tests.data.test_text_store import Tokenizer, text

SCORED = {  # a teacher that prefers a text of neg to the one of pos, and another query with logits
    "above": {"pos_scores": [0.41], "neg_scores": [0.93, 0.05]},
    "negative": {"pos_scores": [-3.2], "neg_scores": [-1.0, -8.5]},
    "none": {},
    "only_pos": {"pos_scores": [0.2]},
    "only_neg": {"neg_scores": [0.9, 0.1]},
}


def records(tmp_path, rows, **settings) -> Records:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Records(name="kd", path=str(path), **settings)


def table_of(tmp_path, *datasets):
    return open_table(tmp_path / "cache", list(datasets), Tokenizer().pieces(), lambda message: None)


def lists(scores, count=6):
    return [
        {"query": f"q{n}", "pos": [f"good {n}"], "neg": [f"bad {n} a", f"bad {n} b"], **scores} for n in range(count)
    ]


def shown(table, group):
    return [text(table, row) for row in group.candidates]


@pytest.mark.parametrize("kind", SCORED)
@pytest.mark.parametrize("scores_are", ["relevance", "teacher"])
def test_lists_decide_whatever_the_scores(tmp_path, kind, scores_are):
    if scores_are == "teacher" and kind.startswith("only"):
        pytest.skip("a teacher scores both lists")
    table = table_of(tmp_path, records(tmp_path, lists(SCORED[kind]), scores_are=scores_are))
    contrastive = ContrastiveDataLoader(table=table, batch_size=6, seed=1, positives="all")
    assert len(contrastive.items) == 6
    pairs = PairedPreferenceDataLoader(table=table, batch_size=12, seed=1, pairs_per_example=9)
    assert len(pairs.items) == 12, "one positive with each of two negatives, no pair within a list"
    drawn = ListwiseDataLoader(table=table, batch_size=6, seed=1, groups_per_query="one", group_size=3)
    for loader in (contrastive, pairs, drawn):
        for group in loader.groups(0):
            first, *others = shown(table, group)
            assert first.startswith("good") and all(other.startswith("bad") for other in others)
    units = UnpairedPreferenceDataLoader(table=table, batch_size=18, seed=1)
    assert units.counts() == (6, 12)
    for group in units.groups(0):
        assert group.relevance.tolist() == [float(shown(table, group)[0].startswith("good"))]
    assert {text(table, row) for row in table.known_positives(int(table.query[0]))} == {"good 0"}


def test_scores_are_labels_and_a_teachers_values_at_once(tmp_path):
    """As RAG-Retrieval's pointwise loss reads them and FlagEmbedding's distillation."""
    (example,) = records(tmp_path, lists(SCORED["above"], 1)).examples()
    assert (example.relevance, example.relevant) == ((1, 0, 0), (True, False, False))
    assert example.grades == example.teacher == (0.41, 0.93, 0.05)
    (example,) = records(tmp_path, lists(SCORED["above"], 1), scores_are="teacher").examples()
    assert (example.grades, example.teacher) == (None, (0.41, 0.93, 0.05))
    (example,) = records(tmp_path, lists(SCORED["above"], 1), max_label=2).examples()
    assert example.grades == pytest.approx((0.205, 0.465, 0.025)) and example.teacher == (0.41, 0.93, 0.05)


@pytest.mark.parametrize(("kind", "grades"), [("only_pos", (0.2, 0, 0)), ("only_neg", (1, 0.9, 0.1))])
def test_a_list_without_scores_has_labels_of_1_or_0(tmp_path, kind, grades):
    """RAG-Retrieval's default for the list that has none."""
    (example,) = records(tmp_path, lists(SCORED[kind], 1)).examples()
    assert (example.grades, example.teacher) == (grades, None)


def test_losses_on_labels_read_the_scores_and_softmax_the_lists(tmp_path):
    table = table_of(tmp_path, records(tmp_path, lists(SCORED["above"], 1)))
    (group,) = ListwiseDataLoader(table=table, batch_size=1, seed=1).groups(0)
    labels = labels_of([group])
    order = shown(table, group)
    assert order[0] == "bad 0 a", "lists are dealt by label"
    by_text = {"good 0": 0.41, "bad 0 a": 0.93, "bad 0 b": 0.05}
    wanted = [pytest.approx(by_text[name]) for name in order]
    assert PointwiseLoss().target_of(labels)[0].tolist() == wanted
    assert ListNetLoss().target_of(labels)[0].tolist() == wanted
    assert SoftmaxLoss().target_of(labels)[0].tolist() == [float(name == "good 0") for name in order]
    (prompt,) = ListwisePromptDataLoader(table=table, batch_size=1, seed=1, variable_size=0).groups(0)
    assert prompt.relevance.tolist() == [pytest.approx(by_text[name]) for name in shown(table, prompt)]


GRADED = {
    "pos alone": [{"query": "q", "pos": ["a", "b", "c"], "pos_scores": [0.8, 0.2, 0.1]}],
    "scores": [{"query": "q", "pos": ["a", "b", "c"], "scores": [0.8, 0.2, 0.1]}],
    "hits": [{"query": "q", "hits": [{"content": t, "label": n} for t, n in (("a", 5), ("b", 2), ("c", 1))]}],
    "teacher hits": [{"query": "q", "hits": [{"content": t, "score": n} for t, n in (("a", 5.5), ("b", 2), ("c", -1))]}],
    "flat": [{"query": "q", "content": t, "label": n} for t, n in (("a", 3), ("b", 1), ("c", 0))],
    "columns": [{"query": "q", "texts": ["a", "b", "c"], "grades": [3, 2, 1]}],
}  # fmt: skip
NEEDS_POSITIVES = {
    "contrastive": lambda table: ContrastiveDataLoader(table=table, batch_size=1, seed=1),
    "one list": lambda table: ListwiseDataLoader(table=table, batch_size=1, seed=1, groups_per_query="one"),
    "unpaired": lambda table: UnpairedPreferenceDataLoader(table=table, batch_size=1, seed=1),
}
NEEDS_ORDER = {
    "pairs": lambda table: PairedPreferenceDataLoader(table=table, batch_size=1, seed=1),
    "lists": lambda table: ListwiseDataLoader(table=table, batch_size=1, seed=1),
    "prompts": lambda table: ListwisePromptDataLoader(table=table, batch_size=1, seed=1),
    "rewards": lambda table: UnpairedPreferenceDataLoader(table=table, batch_size=1, seed=1, rewards="score"),
}


def graded(tmp_path, name, **settings):
    maps = {"candidates": "texts", "relevance": "grades"} if name == "columns" else {}
    scores_are = "teacher" if name == "teacher hits" else "relevance"
    return table_of(tmp_path, records(tmp_path, GRADED[name], scores_are=scores_are, **maps, **settings))


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("loader", NEEDS_POSITIVES)
def test_labels_ask_for_a_threshold_where_positives_matter(tmp_path, name, loader):
    table = graded(tmp_path, name)
    with pytest.raises(UnknownRelevance, match=r"^datasets\.kd\.relevant_from is not set: .* labels from [-\d.]+ to "):
        NEEDS_POSITIVES[loader](table)
    for made in NEEDS_ORDER.values():
        assert len(made(table).items)
    with_threshold = graded(tmp_path, name, relevant_from=GRADED_FROM[name])
    groups = NEEDS_POSITIVES[loader](with_threshold).groups(0)
    assert shown(with_threshold, groups[0])[0] == "a" or loader == "unpaired"
    assert np.flatnonzero(with_threshold.stated).tolist() == [0]


GRADED_FROM = {"pos alone": 0.5, "scores": 0.5, "hits": 4, "teacher hits": 3, "flat": 2, "columns": 3}


def test_the_threshold_is_in_the_units_of_the_file(tmp_path):
    table = graded(tmp_path, "hits", min_label=1, max_label=5, relevant_from=2)
    assert table.relevance.tolist() == [1, 0.25, 0] and table.stated.tolist() == [1, 1, 0]
    with pytest.raises(UnknownRelevance, match="labels from 1 to 5"):
        graded(tmp_path, "hits", min_label=1, max_label=5).relevant("this test")


def test_labels_of_0_and_1_need_none_unless_the_dataset_has_others(tmp_path):
    rows = [{"query": q, "hits": [{"content": f"{q}a", "label": 1}, {"content": f"{q}b", "label": 0}]} for q in "xy"]
    assert table_of(tmp_path, records(tmp_path, rows)).relevant("this test").tolist() == [True, False] * 2
    rows.append({"query": "z", "hits": [{"content": "c", "label": 2}]})
    with pytest.raises(UnknownRelevance):
        table_of(tmp_path, records(tmp_path, rows)).relevant("this test")


def test_another_datasets_labels_do_not_matter(tmp_path):
    """The rule looks at each dataset by itself, and the message names the right one."""
    (tmp_path / "other").mkdir()
    clear = records(tmp_path / "other", lists({}, 2))
    clear.name = "clear"
    table = table_of(tmp_path, clear, records(tmp_path, GRADED["hits"]))
    assert table.stated.tolist() == [1, 0, 0] * 2 + [-1] * 3
    with pytest.raises(UnknownRelevance, match=r"datasets\.kd\.relevant_from"):
        table.relevant("this test")


def test_records_with_and_without_a_list_of_negatives(tmp_path):
    """An empty list of negatives is a list; a record without one may hold bad texts under pos."""
    scored = {"query": "q", "pos": ["a", "b"], "pos_scores": [0.9, 0.1]}
    (example,) = records(tmp_path, [{**scored, "neg": [], "neg_scores": []}]).examples()
    assert example.relevant == (True, True) and example.grades == (0.9, 0.1)
    (example,) = records(tmp_path, [scored]).examples()
    assert example.relevant is None and example.relevance == (0.9, 0.1)
    (example,) = records(tmp_path, [{"query": "q", "pos": ["a", "b"]}]).examples()
    assert example.relevant == (True, True) and example.relevance == (1, 1)


def test_ranked_lists_ask_too(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps({"query": "q", "passages": ["a", "b", "c"], "ranking": [1, 2, 0]}) + "\n")
    with pytest.raises(UnknownRelevance, match=r"datasets\.r\.relevant_from"):
        table_of(tmp_path, RankedLists(name="r", path=str(path))).relevant("this test")
    table = table_of(tmp_path, RankedLists(name="r", path=str(path), relevant_from=1))
    assert table.relevant("this test").tolist() == [False, True, False]


def test_max_label_alone_counts_from_0(tmp_path):
    dataset = records(tmp_path, GRADED["flat"], max_label=3)
    assert [example.relevance for example in dataset.examples()] == [(1.0, pytest.approx(1 / 3), 0.0)]
