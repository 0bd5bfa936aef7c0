"""Groups of runs: seeds together, recipes apart, titles, what differs, and which run is stage one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankpo.report.groups import group_runs, is_plain_rankpo, start_of
from rankpo.report.runs import Run


def run(name: str, config: dict | None = None, record: dict | None = None) -> Run:
    return Run(name, Path("/runs") / name, [], config or {}, [], record or {})


def titles(*runs: Run, labels: dict[str, str] | None = None) -> list[tuple[str, int]]:
    return [(group.title, len(group.runs)) for group in group_runs(runs, labels or {})]


def test_seeds_are_one_group_and_recipes_are_apart():
    a1 = run("a_1", {"seed": 1, "exp_name": "a_1", "run_dir": "x", "loss": {"beta": 2}})
    a2 = run("a_2", {"seed": 2, "exp_name": "a_2", "run_dir": "y", "loss": {"beta": 2}})
    b1 = run("b_1", {"seed": 1, "exp_name": "b_1", "run_dir": "z", "loss": {"beta": 4}})
    groups = group_runs([a1, b1, a2], {})
    assert [(group.title, [r.name for r in group.runs]) for group in groups] == [
        ("a", ["a_1", "a_2"]),
        ("b_1", ["b_1"]),
    ]
    assert [group.differs for group in groups] == [{"loss.beta": 2}, {"loss.beta": 4}]
    assert [group.number for group in groups] == [0, 1] and groups[0].seeds == [1, 2]


def test_what_sets_a_recipe_apart_from_the_most_similar_one_comes_first():
    """b differs from c in z alone, and from a in x and y too: z is what a reader looks for."""
    runs = [
        run("a", {"loss": {"x": 1, "y": 1}, "z": 1}),
        *(run(n, {"loss": {"x": 2, "y": 2}, "z": z}) for n, z in (("b", 1), ("c", 2))),
    ]
    assert [list(group.differs) for group in group_runs(runs, {})] == [["loss.x", "loss.y", "z"]] + [
        ["z", "loss.x", "loss.y"]
    ] * 2


def test_folders_without_a_config_are_grouped_by_what_made_their_model():
    """An export's FINAL says how it was made; folders that say nothing stay apart, whatever their names."""
    exported = [run(f"m{seed}", record={"alpha": 0.7, "seed": seed, "exp_name": f"r{seed}"}) for seed in (1, 2)]
    other = run("m3", record={"alpha": 0.5, "seed": 3, "exp_name": "r3"})
    assert titles(*exported, other, run("n1"), run("n2")) == [("m", 2), ("m3", 1), ("n1", 1), ("n2", 1)]


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (["plain_1", "plain_2"], "plain"),
        (["run_11", "run_12"], "run"),
        (["loss.beta=1,seed=1", "loss.beta=1,seed=2"], "loss.beta=1"),
        (["x/seed1", "x/seed2"], "x"),
        (["x/run1", "x/run2"], "x/run"),
        (["1", "2"], "1"),
        (["losses-1", "losses-2"], "losses"),
    ],
)
def test_a_group_is_called_what_its_runs_have_in_common(names, title):
    assert titles(*(run(name, {"seed": n, "x": 1}) for n, name in enumerate(names))) == [(title, 2)]


def test_equal_titles_are_told_apart():
    runs = [run(f"{folder}_{seed}", {"seed": seed, "x": x}) for x, folder in ((1, "r"), (2, "r_")) for seed in (1, 2)]
    found = [title for title, _ in titles(*runs)]
    assert len(set(found)) == 2


def test_labels_name_groups_and_join_runs():
    runs = [run("a", {"x": 1}), run("b", {"x": 2}), run("c", {"x": 3})]
    assert titles(*runs, labels={"a": "first", "b": "first"}) == [("first", 2), ("c", 1)]
    with pytest.raises(ValueError, match=r"task\.labels names d, which is not among the runs: a, b, c"):
        group_runs(runs, {"d": "x"})


def test_stage_one_is_what_most_others_began_from(tmp_path):
    for name in ("zero", "one", "two", "three"):
        (tmp_path / name / "FINAL").mkdir(parents=True)
    zero, one, two, three = (
        Run(name, tmp_path / name, [], {"model": {"load_from": None if start is None else str(tmp_path / start)}}, [])
        for name, start in (("zero", None), ("one", "zero/FINAL"), ("two", "one/FINAL"), ("three", "one/FINAL"))
    )
    assert start_of([three, two, one, zero]) is one
    assert start_of([two, three]) is None and start_of([one, zero]) is zero


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        ({"_target_": "rankpo.losses.rankpo.RankPOLoss", "replay_weight": 0.0, "kl_weight": 0.0}, True),
        ({"_target_": "rankpo.losses.rankpo.RankPOLoss", "replay_weight": 0.5}, False),
        ({"_target_": "rankpo.losses.rankpo.RankPOLoss", "kl_weight": 1.0}, False),
        ({"_target_": "rankpo.losses.dpo.DPOLoss"}, False),
        ({}, False),
    ],
)
def test_plain_rankpo_keeps_nothing(loss, plain):
    assert is_plain_rankpo(run("r", {"loss": loss})) is plain
