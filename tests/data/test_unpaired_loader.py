"""Unpaired units: every candidate once, shares of each kind, and whom the reference point pairs with whom."""

from __future__ import annotations

import numpy as np
import pytest

from rankpo.data.loaders.ranking import Group
from rankpo.data.loaders.unpaired_preference import UnpairedPreferenceDataLoader, mismatched
from rankpo.types import Example
from tests.data.test_dataloaders import table_of, texts


@pytest.fixture
def pairs(tmp_path):
    examples = [Example(f"q{n}", (f"good{n}", f"bad{n}"), (1.0, 0.0), f"id{n}") for n in range(8)]
    return table_of(tmp_path, [*examples, Example("q8", ("good8",), (0.5,), "id8", relevant=(True,))])


def test_every_candidate_is_a_unit_once_an_epoch(pairs):
    loader = UnpairedPreferenceDataLoader(table=pairs, batch_size=5, seed=1)
    assert loader.counts() == (9, 8)
    groups = [group for step in range(loader.updates_per_epoch) for group in loader.groups(step)]
    found = sorted(texts(pairs, group)[0] for group in groups)
    assert found == sorted([f"good{n}" for n in range(9)] + [f"bad{n}" for n in range(8)])
    for group in groups:
        assert (group.relevance[0] > 0) == texts(pairs, group)[0].startswith("good")
        assert texts(pairs, group)[0].endswith(group.id[2:])


def test_shares_of_each_kind(pairs):
    """Half of 8 undesirable ones are 4; a third of 9 desirable ones 3; other seeds draw others."""
    loader = UnpairedPreferenceDataLoader(
        table=pairs, batch_size=5, seed=1, undesirable_fraction=0.5, desirable_fraction=1 / 3
    )
    assert loader.counts() == (3, 4)
    other = UnpairedPreferenceDataLoader(table=pairs, batch_size=5, seed=2, undesirable_fraction=0.5)
    assert other.counts() == (9, 4)
    drawn = [{int(slot) for slot in made.items[:, 1] if pairs.relevance[slot] == 0} for made in (loader, other)]
    assert drawn[0] != drawn[1]
    with pytest.raises(ValueError, match=r"dataloader.desirable_fraction must be in \(0, 1\], got 0"):
        UnpairedPreferenceDataLoader(table=pairs, batch_size=5, seed=1, desirable_fraction=0)


def test_labels_without_a_threshold_are_refused_with_what_needs_none(tmp_path):
    """Rewards such as 2.5 tell nothing of which completions are desirable, and loss=ppo can take them as they are."""
    table = table_of(tmp_path, [Example(f"q{n}", (f"a{n}", f"b{n}"), (2.5, -1.0), f"id{n}") for n in range(3)])
    message = "relevant_from is not set: a loss on desirable and undesirable completions needs .*"
    with pytest.raises(ValueError, match=f"{message}, or with loss=ppo set loss.rewards=score, which takes the labels"):
        UnpairedPreferenceDataLoader(table=table, batch_size=2, seed=1)
    with pytest.raises(ValueError, match=f"{message}, or set dataloader.desirable_fraction and .* to 1$"):
        UnpairedPreferenceDataLoader(table=table, batch_size=2, seed=1, rewards="score", desirable_fraction=0.5)
    assert len(UnpairedPreferenceDataLoader(table=table, batch_size=2, seed=1, rewards="score").items) == 6


def group(query: int, candidate: int) -> Group:
    one = np.array([candidate])
    return Group(f"{query}", query, one, one, np.ones(1), None, 1.0)


def test_mismatched_pairs_by_hand():
    """Queries 1 1 2 3: both 1s take the completion of 2, 2 that of 3, 3 that of the first in the circle."""
    groups = [group(1, 10), group(1, 11), group(2, 20), group(3, 30)]
    pairs = mismatched(groups)
    assert [(pair.query, int(pair.candidates[0])) for pair in pairs] == [(1, 20), (1, 20), (2, 30), (3, 10)]
    two = mismatched([group(1, 10), group(2, 20)])
    assert [(pair.query, int(pair.candidates[0])) for pair in two] == [(1, 20), (2, 10)]
    assert mismatched([group(1, 10), group(1, 11)]) == []
