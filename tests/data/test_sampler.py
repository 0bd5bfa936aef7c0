"""Sampler, planner and random keys: functions of their arguments alone, and nothing lost or doubled."""

import numpy as np
import pytest

from rankpo.data.loaders.planner import cut, deal, plan
from rankpo.data.loaders.sampler import Sampler
from rankpo.data.random_keys import permutation, random_keys


def test_random_keys_are_a_fixed_function():
    """SplitMix64 from state 0 gives 16294208416658607535 first (its reference output); here: one part, the seed 0."""
    state = np.uint64(16294208416658607535)  # = mix(0 + golden), which the part 0 leaves as state
    mask = (1 << 64) - 1
    value = (int(state) + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    assert int(random_keys(1, 0)[0]) == value ^ (value >> 31)


def test_permutation_depends_on_every_part():
    first = permutation(50, 1, 2)
    assert sorted(first) == list(range(50))
    assert list(first) == list(permutation(50, 1, 2))
    assert list(first) != list(permutation(50, 1, 3))
    assert list(first) != list(permutation(50, 2, 2))


def test_every_item_once_per_epoch_and_the_last_update_is_smaller():
    sampler = Sampler(num_items=7, batch_size=3, seed=0)
    assert sampler.updates_per_epoch == 3
    for epoch in (0, 1):
        updates = [sampler.update(3 * epoch + number) for number in range(3)]
        assert [e for e, _ in updates] == [epoch] * 3
        assert [len(items) for _, items in updates] == [3, 3, 1]
        assert sorted(np.concatenate([items for _, items in updates])) == list(range(7))
    assert list(sampler.order(0)) != list(sampler.order(1))


def test_an_update_can_be_asked_for_out_of_order():
    straight, jumping = (Sampler(num_items=20, batch_size=4, seed=3) for _ in range(2))
    expected = [straight.update(step)[1].tolist() for step in range(12)]
    assert [jumping.update(step)[1].tolist() for step in (11, 2, 7)] == [expected[11], expected[2], expected[7]]


def test_items_of_one_query_stay_side_by_side():
    keys = np.array([5, 9, 5, 9, 5, 7])
    order = Sampler(num_items=6, batch_size=2, seed=1, together=keys).order(4)
    seen = [int(key) for key in keys[order]]
    assert [key for number, key in enumerate(seen) if number == 0 or seen[number - 1] != key] == list(
        dict.fromkeys(seen)
    )
    assert sorted(order) == list(range(6))


def test_no_usable_example_is_an_error():
    with pytest.raises(ValueError, match="no usable example"):
        Sampler(num_items=0, batch_size=2, seed=1)


def test_deal_balances_tokens():
    """Longest first to the lightest rank: 9 | 8, then 5 to the second (13), 4 to the first (13), 1 to the first (14)."""
    parts = deal(np.array([4, 9, 1, 8, 5]), 2)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4]]


def test_cut_respects_max_tokens_and_keeps_everything():
    costs = np.array([4, 9, 1, 8, 5])
    parts = cut(np.arange(5), costs, max_tokens=9)
    assert [int(costs[part].sum()) for part in parts] == [9, 8, 9, 1]
    assert sorted(np.concatenate(parts)) == [0, 1, 2, 3, 4]


def test_an_item_above_max_tokens_stands_alone():
    assert [part.tolist() for part in cut(np.arange(2), np.array([50, 3]), max_tokens=10)] == [[0], [1]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_plan_gives_every_rank_equally_many_micro_batches(world_size):
    costs = np.array([30, 1, 1, 1, 1, 1])
    parts = plan(costs, world_size, max_tokens=2)
    assert len(parts) == world_size
    assert len({len(part) for part in parts}) == 1
    assert sorted(np.concatenate([item for part in parts for item in part])) == list(range(6))
