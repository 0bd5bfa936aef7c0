"""Keys of other systems: what is said instead of them exists, and is said with `++`, without it, and in a group."""

from __future__ import annotations

import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.config.messages import explain, flag_refusal, null_group
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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("temperature=1", "the config has no 'temperature'; here it is loss.temperature (allowed: "),
        ("loss.max_tokens=8", "loss has no 'max_tokens'; here it is trainer.max_tokens (allowed: "),
        (
            "model.max_prompt_length=4",
            "this kind has no 'max_prompt_length'; causal_lm, reward_model have it: add kind=causal_lm",
        ),
        ("model.head=decoder", "this kind has no 'head'; reranker has it: add kind=reranker"),
    ],
)
def test_a_key_that_stands_elsewhere_is_named_there(override, said):
    overrides = ["model=tiny_bert", "loss=rankpo", override]
    with pytest.raises(HydraException) as error:
        composed(*overrides)
    assert said in explain(error.value, overrides)


def test_an_added_key_that_stands_elsewhere_is_named_there():
    with pytest.raises(ConfigError, match=r"the config has no 'temperature'; here it is loss.temperature "):
        compose(["model=tiny_bert", "datasets=[toy_pairs]", "++temperature=1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learning_rate", "1e-5"], "--learning_rate: keys are set without dashes; write optimizer.lr=1e-5"),
        (["loss=dpo", "--beta=2"], "--beta: keys are set without dashes; write beta=2"),
        (["--bf16", "loss=dpo"], "--bf16: keys are set without dashes; write trainer.precision=VALUE"),
        (["-m", "--config-dir", "x", "--multirun", "--cfg", "job", "loss=dpo"], None),
    ],
)
def test_flags_of_other_systems_are_answered_with_keys(arguments, said):
    assert flag_refusal(arguments) == said


def test_a_group_set_to_true_is_answered_with_its_options():
    overrides = ["debug=true"]
    with pytest.raises(ValueError) as error:
        composed(*overrides)
    assert (
        null_group(error.value, overrides) == "debug=true: debug is a group; choose one of its options: overfit, smoke"
    )


def test_a_dataset_needs_no_brackets():
    made = compose(["datasets=toy_pairs", "eval_datasets=toy_pairs", "model=tiny_bert", "loss=rankpo"])
    assert [item.name for item in (*made.datasets, *made.eval_datasets)] == ["toy_pairs", "toy_pairs"]
