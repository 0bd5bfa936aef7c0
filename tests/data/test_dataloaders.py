"""The loaders: what an update shows, drawn from (seed, epoch, example id) alone."""

from pathlib import Path

import numpy as np
import pytest

from rankpo.data.loaders.ranking import ContrastiveDataLoader, ListwiseDataLoader, PairedPreferenceDataLoader
from rankpo.data.table import open_table
from rankpo.types import Example
from tests.data.test_text_store import Fixed, Tokenizer, text


def table_of(tmp_path: Path, examples):
    return open_table(tmp_path, [Fixed(examples)], Tokenizer().pieces(), lambda message: None)


@pytest.fixture
def lists(tmp_path):
    """Ten queries with 2 positives and 5 negatives each, and one query without any positive."""
    examples = [
        Example(f"q{n}", tuple(f"q{n}{kind}{i}" for kind, count in (("p", 2), ("n", 5)) for i in range(count)),
                (1.0, 1.0, 0, 0, 0, 0, 0), f"id{n}")
        for n in range(10)
    ]  # fmt: skip
    return table_of(tmp_path, [*examples, Example("q10", ("x", "y"), (0.0, 0.0), "id10")])


def texts(table, group):
    return [text(table, row) for row in group.candidates]


def test_a_table_without_examples_is_named(tmp_path):
    with pytest.raises(ValueError, match="every record was left out as bad or by a filter"):
        ContrastiveDataLoader(table=table_of(tmp_path, []), batch_size=4, seed=1)


def test_contrastive_groups_have_the_positive_first_and_own_negatives(lists):
    loader = ContrastiveDataLoader(table=lists, batch_size=4, seed=1, num_negatives=3)
    assert loader.updates_per_epoch == 3
    groups = [group for step in range(3) for group in loader.groups(step)]
    assert sorted(group.id for group in groups) == sorted(f"id{n}" for n in range(10))
    for group in groups:
        own = texts(lists, group)
        assert own[0].startswith(f"q{group.id[2:]}p") and len(own) == 4 == len(set(own))
        assert all(name.startswith(f"q{group.id[2:]}n") for name in own[1:])
        assert group.relevance.tolist() == [1, 0, 0, 0]


def test_positives_and_negatives_change_with_the_epoch_and_come_back_with_the_seed(lists):
    loader = ContrastiveDataLoader(table=lists, batch_size=10, seed=1, num_negatives=3)
    again = ContrastiveDataLoader(table=lists, batch_size=10, seed=1, num_negatives=3)
    by_epoch = [{group.id: texts(lists, group) for group in loader.groups(epoch)} for epoch in range(6)]
    assert by_epoch[0] != by_epoch[1]
    assert {names["id3"][0] for names in by_epoch} == {"q3p0", "q3p1"}
    assert {group.id: texts(lists, group) for group in again.groups(5)} == by_epoch[5]


def test_every_positive_can_have_a_group_of_its_own(lists):
    loader = ContrastiveDataLoader(table=lists, batch_size=100, seed=1, num_negatives=0, positives="all")
    positives = [texts(lists, group) for group in loader.groups(0)]
    assert sorted(name for (name,) in positives) == sorted(f"q{n}p{i}" for n in range(10) for i in range(2))


def test_pairs_put_the_chosen_first(tmp_path):
    table = table_of(tmp_path, [Example("q", ("good", "bad"), (1.0, 0.0), "a", confidence=0.8),
                                Example("q", ("worse", "better"), (0.0, 1.0), "b")])  # fmt: skip
    loader = PairedPreferenceDataLoader(table=table, batch_size=2, seed=1)
    pairs = {group.id: (texts(table, group), group.confidence) for group in loader.groups(0)}
    assert pairs == {"a": (["good", "bad"], pytest.approx(0.8)), "b": (["better", "worse"], 1.0)}


def test_pairs_of_a_graded_list_are_ordered_and_distinct(tmp_path):
    table = table_of(tmp_path, [Example("q", ("a", "b", "c"), (0.0, 2.0, 1.0), "x")])
    loader = PairedPreferenceDataLoader(table=table, batch_size=9, seed=1, pairs_per_example=5, extra_candidates=1)
    groups = loader.groups(0)
    pairs = {tuple(texts(table, group)[:2]) for group in groups}
    assert pairs == {("b", "a"), ("b", "c"), ("c", "a")} and len(groups) == 3
    assert all(sorted(texts(table, group)) == ["a", "b", "c"] for group in groups)


def test_lists_cover_every_candidate_once_and_spread_the_labels(tmp_path):
    """Relevance 3 2 1 0 0 over two lists of three: sorted and dealt in turn, (3, 1, 0) and (2, 0)."""
    table = table_of(tmp_path, [Example("q", tuple("abcde"), (0.0, 1.0, 3.0, 0.0, 2.0), "x")])
    loader = ListwiseDataLoader(table=table, batch_size=9, seed=1, group_size=3)
    groups = loader.groups(0)
    assert sorted(tuple(sorted(group.relevance, reverse=True)) for group in groups) == [(2, 0), (3, 1, 0)]
    assert sorted(name for group in groups for name in texts(table, group)) == list("abcde")


def test_lists_differ_between_epochs(tmp_path):
    table = table_of(tmp_path, [Example("q", tuple("abcdefgh"), (1.0,) + (0.0,) * 7, "x")])
    loader = ListwiseDataLoader(table=table, batch_size=9, seed=1, group_size=4)
    composition = [sorted(frozenset(texts(table, group)) for group in loader.groups(epoch)) for epoch in range(4)]
    assert any(later != composition[0] for later in composition[1:])


def test_weights_repeat_and_thin_out_data_sets(tmp_path):
    first = Fixed([Example(f"a{n}", ("x", "y"), (1.0, 0.0), f"a{n}") for n in range(4)], "first")
    second = Fixed([Example(f"b{n}", ("x", "y"), (1.0, 0.0), f"b{n}") for n in range(4)], "second")
    table = open_table(tmp_path, [first, second], Tokenizer().pieces(), lambda message: None)
    loader = PairedPreferenceDataLoader(table=table, batch_size=100, seed=1, weights=(2.0, 0.5))
    ids = [group.id for group in loader.groups(0)]
    assert sorted(name for name in ids if name[0] == "a") == sorted([f"a{n}" for n in range(4)] * 2)
    assert len({name for name in ids if name[0] == "b"}) == 2 == sum(name[0] == "b" for name in ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: ContrastiveDataLoader(table=t, batch_size=1, seed=0, num_negatives=-1), "num_negatives must be >= 0, got -1"),
        (lambda t: ContrastiveDataLoader(table=t, batch_size=1, seed=0, positives="two"), "one of one, all, got 'two'"),
        (lambda t: PairedPreferenceDataLoader(table=t, batch_size=1, seed=0, pairs_per_example=0), "pairs_per_example must be >= 1"),
        (lambda t: ListwiseDataLoader(table=t, batch_size=1, seed=0, group_size=0), "group_size must be >= 1 or null, got 0"),
        (lambda t: ContrastiveDataLoader(table=t, batch_size=0, seed=0), "trainer.batch_size must be >= 1, got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_key_and_the_value(lists, make, message):
    with pytest.raises(ValueError, match=message):
        make(lists)


def test_data_without_anything_for_a_loader(tmp_path):
    """Single candidates have no pair: the loader is named, since the loss chose it."""
    table = table_of(tmp_path, [Example("q", ("a",), (1.0,), "1"), Example("r", ("b",), (1.0,), "2")])
    with pytest.raises(ValueError, match="none of 2 is one for PairedPreferenceDataLoader"):
        PairedPreferenceDataLoader(table=table, batch_size=2, seed=0)


def test_groups_carry_their_slots(lists):
    group = ContrastiveDataLoader(table=lists, batch_size=1, seed=1).groups(0)[0]
    np.testing.assert_array_equal(np.asarray(lists.candidates[group.slots]), group.candidates)


def test_a_record_may_allow_fewer_negatives_and_no_others(tmp_path):
    """FlagEmbedding's only_1neg and no_in_batch_neg."""
    examples = [
        Example("q", ("a", "b", "c", "d"), (1.0, 0, 0, 0), "x", max_negatives=1, own_negatives=True),
        Example("r", ("a", "b", "c", "d"), (1.0, 0, 0, 0), "y"),
    ]
    loader = ContrastiveDataLoader(table=table_of(tmp_path, examples), batch_size=2, seed=1, num_negatives=2)
    shapes = {group.id: (len(group.candidates), group.own_negatives) for group in loader.groups(0)}
    assert shapes == {"x": (2, True), "y": (3, False)}
