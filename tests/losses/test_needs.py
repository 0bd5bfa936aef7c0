"""The needs of every loss of config/loss: what trainers and the check of a config read instead of a loss's attributes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.losses.base import NEEDS

NAMES = sorted(path.stem for path in Path("config/loss").glob("*.yaml"))
PAIRS_WITH_REFERENCE = [
    "apo-down",
    "apo-zero",
    "bco",
    "cdpo",
    "dpo",
    "exo",
    "ipo",
    "nca",
    "robust_dpo",
    "sppo",
    "kto-zero",
]
EXPECTED = {
    **{name: {"reference"} for name in PAIRS_WITH_REFERENCE},
    **{name: {"vectors"} for name in ("contrastive", "graded_margin", "triplet", "cosent", "angle", "cosine_mse")},
    **{name: {"vectors"} for name in ("contrastive_pairs", "online_contrastive", "gist", "embed_distill", "jasper")},
    "m3": {"vectors", "parts"},
    "kto": {"reference", "live_reference"},
    "tdpo": {"reference", "live_reference", "token_logps"},
    "ra-dpo": {"reference", "live_reference", "token_logps"},
    "ppo": {"reference", "token_logps", "value_head"},
    "grpo": {"reference"},
    "sft": {"token_logps"},
    "csft": {"token_logps", "control_tokens"},
    "bradley-terry": {"reward_head"},
    "kl_distill": {"teacher"},
    "margin_mse": {"teacher"},
    "mixture": {"teacher"},
    "listwise_generation": {"lists", "answers"},
    "listwise_ranking": {"lists"},
    "listwise_combined": {"lists", "answers"},
}


def loss(name: str, *overrides: str):
    return compose([f"loss={name}", "model=tiny_llama", *overrides]).loss


@pytest.mark.parametrize("name", NAMES)
def test_needs_of_every_loss(name: str):
    needs = loss(name).needs
    assert needs == EXPECTED.get(name, set()) and needs <= NEEDS


@pytest.mark.parametrize(
    ("name", "override", "needs"),
    [
        ("rankpo", "loss.reference_free=false", {"reference"}),
        ("plackett_luce", "loss.reference_free=false", {"reference"}),
        ("plackett_luce", "loss.target=teacher", {"teacher"}),
        ("rankpo", "loss.matryoshka_dims=[8]", {"vectors"}),
        ("graded_margin", "loss.negatives=own", set()),
    ],
)
def test_needs_follow_the_keys_of_the_loss(name: str, override: str, needs: set[str]):
    assert loss(name, override).needs == needs


def test_a_need_names_the_key_that_asks_for_it():
    assert loss("rankpo", "loss.matryoshka_dims=[8]").asked_by("vectors") == "loss.matryoshka_dims"
    replayed = loss("rankpo", "loss.replay_weight=1", "loss.replay_temperature=0.05")
    assert replayed.asked_by("vectors") == "loss.replay_weight"
    assert loss("rankpo").asked_by("reference") == "RankPOLoss"


def test_losses_on_tokens_need_the_reference_model_where_the_kind_gives_tokens():
    tokens, scores = frozenset({"token_logps"}), frozenset({"vectors"})
    for name in ("grpo", "ppo"):
        assert "live_reference" in loss(name).needs_with(tokens)
        assert "live_reference" not in loss(name).needs_with(scores)
    assert "live_reference" not in loss("dpo").needs_with(tokens)


def test_auto_log_probabilities_are_decided_once():
    assert loss("dpo").logps == "none" and loss("dpo", "kind=embedding").logps == "candidates"
    assert loss("dpo", "loss.logps=sigmoid").fitted("none").logps == "sigmoid"
