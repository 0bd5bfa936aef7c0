"""Keys of other systems: what is said instead of them exists, and is said with `++`, without it, and in a group."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.config.flags import flag_refusal
from rankpo.config.messages import explain, null_group
from rankpo.config.renamed import NO_KEY, RENAMED
from rankpo.errors import ConfigError
from tests.runs import ROOT


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return hydra_compose("config", overrides=["datasets=[chat,rankpo]", "eval_datasets=[chat]", *overrides])


@cache
def tree_of(*choices: str):
    return composed("model=base", *choices)


@pytest.mark.parametrize("name", RENAMED)
def test_what_is_said_exists(name):
    """Every dotted name outside of brackets, in the config of the options that the brackets ask for, if they do."""
    brackets = " ".join(re.findall(r"\(([^)]*)\)", RENAMED[name]))
    asked = re.findall(r"\b(?:loss|kind|tracker|task)=[\w-]+", brackets)
    tree = tree_of(*asked) if asked else tree_of("loss=kto")
    words = re.sub(r"\([^)]*\)", "", RENAMED[name]).replace(",", " ").split()
    words = [word for word in words if word not in ("or", "and")]
    assert words
    for word in words:
        found = []
        for entry in ("chat", "rankpo"):
            parent, _, leaf = word.replace("NAME", entry).rpartition(".")
            found += list(OmegaConf.select(tree, parent) or ()) if parent else list(tree)
        assert leaf in found, f"{name}: {word}"


def test_no_name_has_a_key_and_none():
    assert not set(NO_KEY) & set(RENAMED)
    files = re.findall(r"accelerate_config/\w+\.yaml", " ".join(NO_KEY.values()))
    assert files and all((ROOT / file).is_file() for file in files)


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
        (["loss=dpo", "--beta=2"], "--beta: keys are set without dashes; write loss.beta=2 (loss=rankpo)"),
        (["--bf16", "loss=dpo"], "--bf16: keys are set without dashes; write trainer.precision=bf16"),
        (["--bf16", "True"], "--bf16: keys are set without dashes; write trainer.precision=bf16"),
        (
            ["--dataloader_drop_last", "True"],
            "--dataloader_drop_last: leave it out; the last batch of an epoch counts by its size",
        ),
        (
            ["--top-k", "3"],
            "--top-k: keys are set without dashes; write model.top_k=3 or task.top_k=3 or mining.top_k=3",
        ),
        (
            ["--num_negatives", "5", "--save_every", "9"],
            "--num_negatives: keys are set without dashes; write dataloader.num_negatives=5 (loss=contrastive)\n"
            "--save_every: keys are set without dashes; write trainer.save_every=9",
        ),
        (
            ["--ndcg_at", "3"],
            "--ndcg_at: keys are set without dashes, and no key is called 'ndcg_at'; rankpo train --cfg job prints all keys",
        ),
        (["--chat_template", "x"], "--chat_template: keys are set without dashes; write model.chat_template=x"),
        (["-m", "--config-dir", "x", "--multirun", "--cfg", "job", "loss=dpo"], None),
    ],
)
def test_flags_of_other_systems_are_answered_with_keys(arguments, said):
    assert flag_refusal(arguments) == said


@pytest.mark.parametrize("override", ["config.intermediate_checkpoints=true", "++config.intermediate_checkpoints=true"])
def test_a_key_below_a_name_that_does_not_exist_is_named(override):
    """Ra-DPO's FAQ says it so."""
    overrides = ["model=tiny_pythia", "loss=sft", "datasets=[toy_chat]", override]
    try:
        compose(overrides)
    except HydraException as error:
        said = explain(error, overrides)
    except ConfigError as error:
        (said,) = error.problems
    assert said.startswith(
        "config.intermediate_checkpoints: the config has no 'config'; here it is trainer.intermediate"
    )


def test_plusses_in_front_of_a_group():
    made = compose(["++loss=rankpo", "++model=tiny_bert", "++datasets=[toy_pairs]", "+debug=smoke"])
    assert type(made.loss).__name__ == "RankPOLoss" and made.settings.max_steps == 3
    with pytest.raises(HydraException) as error:
        compose(["++debug=true"])
    assert (
        explain(error.value, ["++debug=true"])
        == "debug is a group; write debug=… without ++, one of: overfit, profile, smoke"
    )


@pytest.mark.parametrize(
    ("option", "name", "weight"),
    [("listnet", "ListNetLoss", 0.1), ("lambdarank", "LambdaLoss", 1.0), ("ranknet", "RankNetLoss", 10.0)],
)
def test_the_ranking_loss_of_a_listwise_model_is_an_option(option, name, weight):
    loss = compose(
        ["loss=listwise_combined", f"loss.ranking={option}", "model=tiny_llama", "loss.ranking.temperature=2"]
    ).loss
    assert (type(loss.ranking).__name__, loss.ranking_weight, loss.ranking.temperature) == (name, weight, 2.0)
    alone = compose(["loss=listwise_ranking", f"loss.ranking={option}", "model=tiny_llama"]).loss
    assert (type(alone.ranking).__name__, alone.ranking_weight) == (name, 1.0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("loss.ranking=listnet",),
            "loss.ranking is a key of loss=listwise_combined and loss=listwise_ranking alone; add one of them",
        ),
        (("min_label=1", "max_label=2"), "_label'; here it is "),
        (("max_label=2", "loss=rankpo", "nothing=1"), "the config has no "),
    ],
)
def test_one_of_several_unknown_keys_and_a_group_of_another_loss_are_explained(overrides, said):
    with pytest.raises(HydraException) as error:
        composed("model=tiny_bert", *overrides)
    assert said in explain(error.value, overrides) and "To append" not in explain(error.value, overrides)


def test_a_group_set_to_true_is_answered_with_its_options():
    overrides = ["debug=true"]
    with pytest.raises(ValueError) as error:
        composed(*overrides)
    assert (
        null_group(error.value, overrides)
        == "debug=true: debug is a group; choose one of its options: overfit, profile, smoke"
    )


def test_a_dataset_needs_no_brackets():
    made = compose(["datasets=toy_pairs", "eval_datasets=toy_pairs", "model=tiny_bert", "loss=rankpo"])
    assert [item.name for item in (*made.datasets, *made.eval_datasets)] == ["toy_pairs", "toy_pairs"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed 3", "write seed=3"),
        ("--datasets x", "write datasets=x"),
        ("--path a", "write datasets.NAME.path=a or judge.path=a"),
        ("--train_group_size 8", "write dataloader.num_negatives=8 (one less: the positive is not counted"),
        ("--knowledge_distillation True", "write loss=kl_distill"),
        ("--use_flash_attn", "write model.attn_implementation=flash_attention_2"),
        ("--gradient_accumulation_steps 4", "leave it out; trainer.batch_size counts over all devices"),
        ("--output_dir out", "write exp_name=out (the run is in runs_dir/exp_name)"),
        ("--retriever bm25", "leave it out; task=rerank reads the run of a first stage"),
        ("--lora_r 8", "write model.peft.lora_r=8"),
        ("--max_label 2", "write datasets.NAME.max_label=2"),
        ("--no_such_thing 8", "no key is called 'no_such_thing'; rankpo train --cfg job prints all keys"),
    ],
)
def test_flags_name_keys_that_exist(flags, said):
    assert said in flag_refusal(flags.split())


@pytest.mark.parametrize("override", ["max_label=2", "loss.max_label=2"])
def test_a_key_of_datasets_is_named_where_none_is_chosen(override):
    with pytest.raises(HydraException) as error:
        hydra(override)
    assert "here it is datasets.NAME.max_label" in explain(error.value, [override])


def hydra(override: str):
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return hydra_compose("config", overrides=[override])
