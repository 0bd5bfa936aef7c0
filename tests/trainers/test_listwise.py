"""Losses on lists, from the command line's config to a trained model: every option composes and lowers its loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.data.generated.jobs import Jobs, relevance
from rankpo.data.generated.jobs_judge import utility
from rankpo.errors import ConfigError
from rankpo.losses.lists import ListLoss
from rankpo.losses.mixture import MixtureLoss
from rankpo.losses.reduction import total
from tests.runs import ROOT, TINY, curve, final_weights, train, trainer_of
from tests.thinning import thinned

LISTWISE = (*TINY, "datasets=[toy_graded]", "optimizer.lr=0.05")
ADAM = (
    "optimizer=adamw",
    "optimizer.lr=0.002",
    "trainer.epochs=10",
)  # the gradients of the losses differ by 100 in size
NAMES = [
    "adr_mse",
    "kl_distill",
    "lambdaloss",
    "lambdarank",
    "listmle",
    "listnet",
    "listwise_ce",
    "margin_mse",
    "mixture",
    "pairwise_ranknet",
    "plackett_luce",
    "plistmle",
    "point_ce",
    "point_mse",
    "pointwise",
    "pointwise_bce",
    "pointwise_mse",
    "ranknet",
    "softmax",
]
ALIASES = {
    "point_ce": "pointwise",
    "pointwise_bce": "pointwise",
    "point_mse": "pointwise_mse",
    "pairwise_ranknet": "ranknet",
    "listwise_ce": "listnet",
}


def test_every_loss_on_lists_is_in_the_table_above():
    found = sorted(
        path.stem
        for path in (ROOT / "config" / "loss").glob("*.yaml")
        if "override /trainer: listwise" in path.read_text()
    )
    assert [name for name in found if not name.startswith("listwise_") or name == "listwise_ce"] == NAMES


IN_CI = ["softmax", "lambdarank", "plistmle", "margin_mse"]  # one of each family


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_has_every_key_of_its_class(name):
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "config" / "loss" / f"{name}.yaml"))["loss"]
    loss = compose([*LISTWISE, f"loss={name}"]).loss
    assert isinstance(loss, ListLoss | MixtureLoss)
    assert set(node) - {"_target_"} == set(vars(loss))


@pytest.mark.parametrize("name", thinned([name for name in NAMES if name not in ALIASES], keep=IN_CI))
def test_every_loss_learns_its_training_lists(name):
    """Ten updates lower the loss of the first one's lists, in the order of ties that it had."""
    trainer = trainer_of(*LISTWISE, f"loss={name}", "trainer.batch_size=12", *ADAM)
    first = trainer.prepare(0)

    def value() -> float:
        (item,) = first.micro_batches
        return total(trainer.compute_loss(item.batch), first.denominators).item()

    before = value()
    for step in range(10):
        trainer.train_step(trainer.prepare(step))
    assert np.isfinite(before) and value() < before


def test_a_run_logs_each_term_and_saves(tmp_path: Path):
    train(*LISTWISE, "loss=mixture", "exp_name=x", f"cache_dir={tmp_path}", "trainer.epochs=2")
    assert len(curve(tmp_path / "x")) == 6
    for name in ("train/scores/accuracies", "train/scores/top1", "train/ndcg@10", "train/loss/teacher"):
        assert len(curve(tmp_path / "x", name)) == 6
    assert curve(tmp_path / "x", "train/loss/labels") != curve(tmp_path / "x", "train/loss/teacher")
    assert final_weights(tmp_path / "x")


def test_a_loss_of_a_teacher_refuses_data_without_one():
    with pytest.raises(ValueError, match="KLDistillLoss needs a teacher score for every candidate"):
        trainer_of(*TINY, "loss=kl_distill", "datasets=[toy_contrastive]")


def test_a_wrong_key_and_a_wrong_value_are_named():
    with pytest.raises(ConfigError, match=r"loss\.temperature must be > 0, got 0"):
        compose([*LISTWISE, "loss=ranknet", "loss.temperature=0"])
    with pytest.raises(ConfigError, match=r"loss\.wieght"):
        compose([*LISTWISE, "loss=ranknet", "+loss.wieght=rank"])


def test_graded_lists_of_the_world():
    """Grades and teacher of every candidate are those of the rules and the judge; every list has all three grades."""
    world = Jobs(name="x", part="graded", num_profiles=200, num_posts=12, num_negatives=4, max_label=2.0)
    posts = {post.id: post for post in world.posts}
    profiles = {profile.text: profile for profile in world.profiles}
    examples = list(world.examples())
    assert len(examples) >= 10
    for example in examples:
        post = posts[example.id]
        for text, grade, score in zip(example.candidates, example.relevance, example.teacher or (), strict=True):
            assert grade == relevance(post, profiles[text])
            assert score == pytest.approx(utility(post, profiles[text]))
        assert len(set(example.candidates)) == len(example.candidates) <= 12
    assert {grade for example in examples for grade in example.relevance} == {0.0, 1.0, 2.0}
    scaled = next(Jobs(name="x", part="graded", num_profiles=200, num_posts=12, num_negatives=4).examples())
    assert scaled.relevance == tuple(grade / 2 for grade in examples[0].relevance)
