"""The group `kind`: what is made of the weights is chosen by the loss or the task, and by the command line above both."""

from __future__ import annotations

import json
import re
from itertools import permutations

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

import rankpo
from rankpo.config.aliases import ALIASES, modern
from rankpo.config.compose import compose
from rankpo.config.places import CONFIG
from rankpo.config.weights import USUAL_LOSSES
from rankpo.errors import ConfigError
from rankpo.models.known import known_settings, table
from tests.runs import curve, launch, train

REQUESTS = "task.requests=launch.py"
CHOSEN = [
    (("loss=rankpo", "model=llama"), "embedding"),
    (("loss=contrastive", "model=llama"), "embedding"),
    (("loss=dpo", "model=llama"), "causal_lm"),
    (("loss=kto", "model=qwen"), "causal_lm"),
    (("loss=ra-dpo", "model=pythia"), "causal_lm"),
    (("loss=pointwise", "model=llama"), "reranker"),
    (("loss=softmax", "model=minilm"), "reranker"),
    (("loss=listwise_generation", "model=llama"), "listwise"),
    (("task=rerank", "model=bge_reranker", REQUESTS), "reranker"),
    (("task=sample", "model=qwen"), "causal_lm"),
    (("task=encode", "model=e5"), "embedding"),
    (("loss=dpo", "task=rerank", "model=bge_reranker", REQUESTS), "reranker"),  # the task's choice is the last
    (("loss=dpo", "model=minilm", "kind=embedding"), "embedding"),
    (("loss=rankpo", "model=llama", "kind=causal_lm"), "causal_lm"),
    (("loss=rankpo", "model=llama", "kind=reranker"), "reranker"),
    (("task=rerank", "model=llama", "kind=listwise", REQUESTS), "listwise"),
]


@pytest.mark.parametrize(("words", "kind"), CHOSEN, ids=[" ".join(words) for words, _ in CHOSEN])
def test_the_kind_is_chosen_in_any_order_of_the_words(monkeypatch, words, kind):
    monkeypatch.chdir(CONFIG.parent)
    orders = list(permutations(words))
    for order in (orders[0], orders[-1]):
        assert compose(order).model.kind == kind


def test_every_loss_chooses_a_kind():
    kinds = {path.stem for path in (CONFIG / "kind").glob("*.yaml")}
    for path in (CONFIG / "loss").glob("*.yaml"):
        (chosen,) = [
            item["override /kind"] for item in yaml.safe_load(path.read_text())["defaults"] if "override /kind" in item
        ]
        assert chosen in kinds, path


def test_what_a_task_needs_of_the_loss_default_does_not_hinder_it():
    assert compose(["task=sample", "model=tiny_pythia", "datasets=[toy_chat]"]).model.kind == "causal_lm"


# settings that follow from the weights


def test_settings_of_the_authors_are_taken_by_hub_id():
    for choice in ("model=bge_m3", "model.name_or_path=BAAI/bge-m3"):
        model = compose([choice]).model
        assert (model.pooling, model.passage_max_length) == ("cls", 1024)
    assert compose(["model=bge_m3", "model.pooling=mean"]).model.pooling == "mean"
    assert compose(["model=bge_m3", "model.pooling=auto"]).model.pooling == "auto"  # what the command line says stays
    assert compose(["model=minilm", "loss=softmax"]).model.max_length == 256
    assert known_settings("nobody/knows", "embedding") == {}


def test_every_entry_of_the_table_is_a_key_of_its_kind():
    kinds = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIG / "kind").glob("*.yaml")}
    assert len(table()) >= 7
    for name, by_kind in table().items():
        assert name.count("/") == 1 and {*by_kind} <= {*kinds}
        for kind, keys in by_kind.items():
            assert {*keys} <= {*kinds[kind]}, (name, kind)
    for path in (CONFIG / "model").glob("*.yaml"):
        for kind, keys in (yaml.safe_load(path.read_text()).get("by_kind") or {}).items():
            assert {*keys} <= {*kinds[kind]}, (path, kind)


def test_an_experiment_wins_over_the_weights():
    keys = ("++model.by_kind.reranker.suffix=other", "datasets=[toy_graded]")
    assert compose(["experiment=rag_llm_pairs", *keys]).model.suffix == "\nrelevance"
    assert compose(["experiment=rag_llm_pairs", *keys]).model.name_or_path == "Qwen/Qwen2.5-1.5B"


def test_by_kind_of_a_model_yaml_is_checked():
    with pytest.raises(ConfigError, match=r"model.by_kind.embedding has no 'poling'; did you mean pooling\?"):
        compose(["model=tiny_bert", "+model.by_kind.embedding.poling=cls"])
    with pytest.raises(ConfigError, match=r"model.by_kind.embedding must be a mapping"):
        compose(["model=minilm", "+model.by_kind.embedding=cls"])


@pytest.mark.parametrize(
    ("model", "pooling", "head"), [("tiny_pythia", "last", "decoder"), ("tiny_bert", "mean", "encoder")]
)
def test_what_nobody_states_the_architecture_decides(model, pooling, head):
    """Pooling of an embedding model, head of a reranker: without the settings that the tiny yamls bring."""
    quiet = lambda message: None  # noqa: E731
    for kind, key, value in (("embedding", "pooling", pooling), ("reranker", "head", head)):
        composed = compose([f"model={model}", f"kind={kind}", "loss=dpo"]).model
        made = type(composed)(random=composed.random)
        assert getattr(made.open_inputs(quiet).settings, key) == value


@pytest.mark.parametrize(("loss", "data"), [("dpo", "toy_chat"), ("listwise_ranking", "toy_lists")])
def test_an_encoder_cannot_continue_texts(tmp_path, loss, data):
    with pytest.raises(
        ConfigError, match=r"is not a decoder, .* choose a decoder, such as model=llama.* kind=embedding"
    ):
        train("model=tiny_bert", f"loss={loss}", f"datasets=[{data}]", f"cache_dir={tmp_path}")


# the command of RankPO's users


def test_rankpo_on_llama_trains_an_embedding_model(tmp_path):
    """As `accelerate launch launch.py loss=rankpo model=llama` does, on random weights under that yaml."""
    sizes = (
        "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 64"
    )
    weights = ("model.name_or_path=null", f"model.random={{model_type: llama, {sizes}, max_position_embeddings: 512}}")
    data = ("datasets=[toy_pairs]", "trainer.batch_size=4", "trainer.max_steps=2", "trainer.log_every=1")
    done = launch("loss=rankpo", "model=llama", *weights, *data, f"cache_dir={tmp_path}", "exp_name=run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "FINAL" / "rankpo.json").read_text())
    assert (record["kind"], record["settings"]["pooling"]) == ("embedding", "last")
    assert all(
        value < 20 for value in curve(tmp_path / "run")
    )  # of log-probabilities of whole texts it would be hundreds
    assert rankpo.load(tmp_path / "run" / "FINAL", "cpu").encode(["a text"], role="query").shape == (1, 32)


def test_a_folder_of_another_kind_names_the_kind_to_add(tmp_path):
    small = ("model.random.num_hidden_layers=1", "trainer.max_steps=1", f"cache_dir={tmp_path}")
    train("model=tiny_llama", "loss=dpo", "kind=embedding", "datasets=[toy_pairs]", *small, "exp_name=a")
    train("model=tiny_pythia", "loss=sft", "datasets=[toy_chat]", *small, "exp_name=b")
    vectors, text = (f"model.load_from={tmp_path}/{name}/FINAL" for name in "ab")
    with pytest.raises(
        ConfigError,
        match=r"a/FINAL holds a model of kind embedding, and loss=dpo trains a causal_lm by default; add kind=embedding to "
        r"apply it to this model, load a model of kind causal_lm, or train this one by loss=contrastive or loss=rankpo$",
    ):
        compose(["loss=dpo", "model=llama", vectors, "datasets=[toy_pairs]"])
    with pytest.raises(
        ConfigError,
        match=r"of kind embedding, which loss=sft cannot train; load a model of kind causal_lm, or train this one by loss=c",
    ):
        compose(["loss=sft", "model=llama", vectors, "datasets=[toy_chat]"])
    with pytest.raises(ConfigError, match=r"b/FINAL holds a model of kind causal_lm, .*; add kind=causal_lm$"):
        compose(["task=encode", "model=pythia", text])
    assert (
        compose(["loss=dpo", "model=llama", vectors, "datasets=[toy_pairs]", "kind=embedding"]).model.kind
        == "embedding"
    )
    # fine-tuned on answers first, then as a listwise reranker: plain weights
    assert compose(["loss=listwise_ranking", "model=pythia", text, "datasets=[toy_lists]"]).model.kind == "listwise"


@pytest.mark.parametrize("kind", USUAL_LOSSES)
def test_the_losses_that_messages_suggest_train_their_kind(kind):
    for loss in re.findall(r"loss=(\S+)", USUAL_LOSSES[kind]):
        weights = "model=tiny_llama" if kind in ("listwise", "causal_lm", "reward_model") else "model=tiny_bert"
        made = compose([f"loss={loss}", weights, f"kind={kind}", "datasets=[toy_pairs]"])
        assert made.model.kind == kind


# old names of models


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_old_names_compose_to_the_same_and_say_the_new_spelling(capsys, name):
    given = ["model.name_or_path=x/y"] if ALIASES[name].model == "base" else []
    model = compose([f"model={name}", *given, "task=report", "task.runs=[.]"]).model
    assert model.kind == ALIASES[name].kind
    said = capsys.readouterr().err.splitlines()
    assert said == [f"model={name} is an old name, which the next release removes; write {ALIASES[name].spelling}"]
    assert not (CONFIG / "model" / f"{name}.yaml").exists()


def test_old_names_keep_the_settings_of_their_yaml():
    llama = compose(["model=llama_embedding"]).model
    assert (llama.query_max_length, llama.passage_max_length) == (1280, 4096)
    assert compose(["model=llama_embedding", "model.query_max_length=64"]).model.query_max_length == 64
    qwen = compose(["model=decoder_reranker", "loss=pointwise"]).model
    assert (qwen.name_or_path, qwen.suffix, qwen.separator, qwen.max_length) == (
        "Qwen/Qwen2.5-1.5B",
        "</s>",
        "\n",
        1024,
    )
    tiny = compose(["model=tiny_yes_no", "loss=pointwise"]).model
    assert (tiny.head, tiny.suffix, tiny.yes_word, tiny.max_length) == ("causal_lm", "\nrelevant:", "y", 256)


def test_a_kind_beside_an_old_name_stays():
    for words in (["model=tiny_llama_lm", "kind=embedding"], ["kind=embedding", "model=tiny_llama_lm"]):
        assert compose(["loss=dpo", *words]).model.kind == "embedding"


def test_old_names_in_a_sweep_are_refused_with_the_new_ones():
    with pytest.raises(
        ConfigError, match=r"cannot be swept over; the new spellings are minilm_reranker: model=minilm kind=reranker"
    ):
        modern(["model=minilm,minilm_reranker"])
    assert modern(["model=minilm,llama", "loss=dpo"]) == (["model=minilm,llama", "loss=dpo"], [])


def test_an_old_name_in_a_yaml_of_the_user_is_answered_with_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /model: minilm_reranker]\n"
    )
    done = launch("--config-dir", str(tmp_path), "experiment=mine")
    assert done.returncode == 2
    assert (
        done.stderr
        == "model=minilm_reranker is an old name, which a yaml cannot use; write model=minilm kind=reranker\n"
    )


def test_the_command_line_says_so_once_and_runs(tmp_path):
    given = (
        "model=tiny_reranker",
        "loss=pointwise",
        "datasets=[toy_graded]",
        "trainer.max_steps=1",
        f"cache_dir={tmp_path}",
    )
    done = launch(*given)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("model=tiny_reranker is an old name") == 1
    assert json.loads((tmp_path / "run" / "FINAL" / "rankpo.json").read_text())["kind"] == "reranker"


def test_no_yaml_repeats_a_checkpoint_for_a_kind():
    """A checkpoint has one yaml for all kinds, and what differs by kind stands in it or in the table."""
    names = [yaml.safe_load(path.read_text()).get("name_or_path") for path in (CONFIG / "model").glob("*.yaml")]
    given = [name for name in names if name is not None]
    assert len(given) > 10 and len(set(given)) == len(given)


def test_hydra_lists_the_group():
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        assert hydra_compose("config", overrides=["kind=reranker"]).model.head == "auto"
