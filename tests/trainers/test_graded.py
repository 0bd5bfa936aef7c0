"""Graded margin in a run: what the data knows of an update's passages, replay, and loaders that would hide grades."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rankpo.data.loaders.ranking import Group
from rankpo.errors import ConfigError
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.graded_margin import GradedMarginLoss
from rankpo.losses.rankpo import RankPOLoss
from tests.recipes import GRADED_MARGIN, GRADED_REPLAY
from tests.runs import RANKPO, trainer_of


def test_an_update_knows_all_grades_that_the_data_states(tmp_path):
    """Each query is shown three of its twelve candidates: those of the others that stand in the update are known too."""
    trainer = trainer_of(*GRADED_MARGIN, "dataloader.group_size=3", f"cache_dir={tmp_path}")
    table = trainer.loader.table
    groups: list[Group] = trainer.loader.groups(0)
    batch = trainer.prepare(0).batch
    stated = {
        (int(table.query[example]), int(row)): float(grade)
        for example in range(len(table))
        for row, grade in zip(
            table.candidates[table.slots(example)], table.relevance[table.slots(example)], strict=True
        )
    }
    places = {
        int(row): int(place)
        for group, line in zip(groups, batch.candidates, strict=True)
        for row, place in zip(group.candidates, line, strict=False)
    }
    expected = {
        (number, place): stated[group.query, row]
        for number, group in enumerate(groups)
        for row, place in places.items()
        if (group.query, row) in stated
    }
    found = dict(zip(map(tuple, batch.judged.tolist()), batch.grades.tolist(), strict=True))
    assert found == expected
    assert len(found) > sum(len(group.candidates) for group in groups)  # of posts shown in two lists of one update


def first_loss(*overrides: str) -> float:
    trainer = trainer_of(*overrides)
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    return trainer.running.result(lambda sums: sums)["loss"]


def test_replay_of_grades_is_the_loss_of_stage_one(tmp_path):
    """Twice the weight adds the value of GradedMarginLoss on the replayed update to that of the pairs."""
    trainer = trainer_of(*GRADED_REPLAY, f"cache_dir={tmp_path}")
    update = trainer.prepare(0)
    assert trainer.replay_loss == GradedMarginLoss(temperature=0.1)
    batch = update.replayed.batch
    assert batch.grades is not None and set(batch.grades.tolist()) == {0.0, 0.5, 1.0}
    with torch.no_grad():
        output = trainer.replay_loss.in_batch(trainer.policy(batch.sequences), batch)
    expected = float((output.losses * output.weights).sum() / output.weights.sum())
    assert first_loss(*GRADED_REPLAY, "loss.replay_weight=1.5", f"cache_dir={tmp_path}") == pytest.approx(
        first_loss(*GRADED_REPLAY, f"cache_dir={tmp_path}") + expected, rel=1e-5
    )


def test_loaders_that_hide_grades_are_refused(tmp_path):
    cache = f"cache_dir={tmp_path}"
    with pytest.raises(ConfigError, match=r"the order of the grades 0, 0.5, 1, and dataloader=contrastive yields one"):
        trainer_of(*(key for key in GRADED_MARGIN if "group_size" not in key), "dataloader=contrastive", cache)
    replay = [key for key in GRADED_REPLAY if not key.startswith("replay_dataloader")]
    with pytest.raises(ConfigError, match="set replay_dataloader=listwise"):
        trainer_of(*replay, cache)
    with pytest.raises(ConfigError, match="set replay_dataloader=contrastive, or loss=graded_margin"):
        trainer_of(*(key for key in GRADED_REPLAY if "replay_kind" not in key), cache)


def test_replay_keys():
    keys = {"beta": 1.0, "temperature": 1.0, "replay_weight": 0.5, "replay_temperature": 0.05}
    assert RankPOLoss(**keys).replay_loss == ContrastiveLoss(temperature=0.05)
    graded = RankPOLoss(**keys, replay_kind="graded_margin", replay_margin=1.0, replay_unknown="irrelevant")
    assert graded.replay_loss == GradedMarginLoss(temperature=0.05, margin=1.0, unknown="irrelevant")
    assert RankPOLoss(beta=1.0, temperature=1.0).replay_loss is None
    for more, message in (
        ({"replay_margin": 1.0}, "replay_margin=1.0 needs replay_kind=graded_margin, got contrastive"),
        ({"replay_kind": "listwise"}, "replay_kind must be one of contrastive, graded_margin, got 'listwise'"),
        ({"replay_kind": "graded_margin", "replay_unknown": "low"}, "unknown must be one of masked, irrelevant"),
    ):
        with pytest.raises(ValueError, match=message):
            RankPOLoss(**keys, **more)


def test_a_reranker_learns_own_lists(tmp_path):
    options = ("loss=graded_margin", "loss.negatives=own", "datasets=[toy_graded]", "trainer.batch_size=4")
    trainer = trainer_of("model=tiny_bert", "kind=reranker", *options, f"cache_dir={tmp_path}")
    trainer.policy.train()
    trainer.backward(trainer.prepare(0))
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainer.policy.parameters())
    with pytest.raises(
        ConfigError, match=r"loss\.negatives=in_batch needs embeddings; model of random weights is of kind reranker"
    ):
        trainer_of(
            "model=tiny_bert", "kind=reranker", "loss=graded_margin", "datasets=[toy_graded]", f"cache_dir={tmp_path}"
        )


def test_rankpo_without_replay_has_no_loss_on_it(tmp_path):
    trainer = trainer_of(*RANKPO, f"cache_dir={tmp_path}")
    assert trainer.loss.replay_loss is None
    assert_close(trainer.loss.replay_weight, 0.0)
