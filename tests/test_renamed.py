"""Keys of other systems: what is said instead of them exists, and is said with `++`, without it, and in a group."""

from __future__ import annotations

import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.config.messages import explain
from rankpo.config.renamed import RENAMED
from rankpo.errors import ConfigError
from tests.runs import ROOT


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return hydra_compose("config", overrides=["datasets=[chat]", "eval_datasets=[chat]", *overrides])


@pytest.fixture(scope="module")
def trees():
    chosen = {
        "kto": composed("model=pythia", "loss=kto"),
        "sft": composed("model=base", "kind=listwise", "loss=listwise_generation"),
        **{loss: composed("model=pythia", f"loss={loss}") for loss in ("ppo", "tdpo", "ra-dpo")},
    }
    assert len({tree.loss._target_ for tree in chosen.values()}) == len(chosen)
    return chosen


@pytest.mark.parametrize("name", RENAMED)
def test_what_is_said_exists(name, trees):
    """Every dotted name outside of brackets, in the config of the loss that the brackets ask for, if they do."""
    asked = re.search(r"\(loss=([\w-]+)\)", RENAMED[name])
    tree = trees[asked[1]] if asked else trees["sft" if "kind=listwise" in RENAMED[name] else "kto"]
    words = [
        word for word in re.sub(r"\([^)]*\)", "", RENAMED[name]).replace(",", " ").split() if word not in ("or", "and")
    ]
    assert words
    for word in words:
        parent, _, leaf = word.replace("NAME", "chat").rpartition(".")
        node = OmegaConf.select(tree, parent) if parent else tree
        assert leaf in node, f"{name}: {word}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("++lr=1e-6", "the config has no 'lr'; here it is optimizer.lr (allowed: "),
        ("++loss.human_prefix=x", "has no 'human_prefix'; here it is model.chat_template (allowed: "),
        ("++model.max_grad_norm=1", "has no 'max_grad_norm'; here it is trainer.max_grad_norm (allowed: "),
    ],
)
def test_an_added_key_is_explained(override, said):
    with pytest.raises(ConfigError) as error:
        compose(["model=tiny_pythia", "loss=sft", "datasets=[toy_chat]", override])
    assert len(error.value.problems) == 1 and said in error.value.problems[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("datasets.jsonl.positives=clicked[].text", "\"datasets.jsonl.positives='clicked[].text'\""),
        ("datasets.jsonl.path=~/a.jsonl", "\"datasets.jsonl.path='~/a.jsonl'\""),
        ("datasets=[jsnl]", "the group 'datasets' has no 'jsnl'; did you mean jsonl?"),
    ],
)
def test_what_hydra_cannot_read_or_find_is_explained(override, said):
    with pytest.raises(HydraException) as error:
        composed(override)
    assert said in explain(error.value, [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [("n_epochs=2", "here it is trainer.epochs"), ("loss.frac_unique_desirable=0.5", "dataloader.desirable_fraction")],
)
def test_a_key_without_plus_is_explained(override, said):
    overrides = ["model=tiny_pythia", "loss=sft", override]
    with pytest.raises(HydraException) as error:
        composed(*overrides)
    assert said in explain(error.value, overrides)
