"""Training of late interaction: the interface of every loss, FINAL, the gradient cache, and sentence-transformers' losses."""

import json

import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.config.compose import compose
from tests.distributed.test_strategies import cut_off
from tests.runs import curve, train, trainer_of

LATE = (
    "model=tiny_bert",
    "kind=late_interaction",
    "model.random.num_hidden_layers=1",
    "model.dim=16",
    "model.query_max_length=40",
    "model.query_expansion=fixed",
    "model.passage_max_length=96",
    "model.query_prompt='[Q] '",
    "model.skip=punctuation",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "trainer.max_steps=2",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
CONTRASTIVE = (*LATE, "loss=contrastive", "loss.temperature=0.1", "datasets=[toy_contrastive]")
LOSSES = {
    "contrastive": ("loss=contrastive", "datasets=[toy_contrastive]"),
    "own negatives": ("loss=contrastive", "loss.negatives=own", "datasets=[toy_contrastive]"),
    "symmetric": ("loss=contrastive", "loss.symmetric=true", "loss.query_query=true", "datasets=[toy_contrastive]"),
    "graded margin": ("loss=graded_margin", "datasets=[toy_graded]", "dataloader.group_size=5"),
    "rankpo": ("loss=rankpo", "datasets=[toy_pairs]"),
    "dpo": ("loss=dpo", "datasets=[toy_pairs]", "loss.temperature=0.1"),
    "kl_distill": ("loss=kl_distill", "datasets=[toy_graded]", "loss.temperature=0.1"),
    "margin_mse": ("loss=margin_mse", "datasets=[toy_graded]", "loss.temperature=1"),
    "ranknet": ("loss=ranknet", "datasets=[toy_graded]", "loss.temperature=0.1"),
    "listnet": ("loss=listnet", "datasets=[toy_graded]", "loss.temperature=0.1"),
    "listmle": ("loss=listmle", "datasets=[toy_graded]", "loss.temperature=0.1"),
    "kto": ("loss=kto", "datasets=[toy_pairs]", "loss.temperature=0.1"),
}


QUICK = ("contrastive", "rankpo", "dpo", "kl_distill", "margin_mse", "listmle")  # in the default suite


@pytest.mark.parametrize(
    "loss", [loss if loss in QUICK else pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES]
)
def test_every_form_of_loss_goes_down(tmp_path, loss):
    trainer = trainer_of(*LATE, *LOSSES[loss], "optimizer.lr=0.02", f"cache_dir={tmp_path}")
    trainer.policy.train()
    update, values = trainer.prepare(0), []
    for _ in range(4):
        trainer.train_step(update)
        values.append(trainer.running.result(lambda sums: sums)["loss"])
        trainer.running.clear()
    assert values[-1] < values[0] - 1e-4


def test_a_run_evaluates_and_its_final_is_loaded(tmp_path):
    evaluated = (
        "eval_datasets=[jobs_test]",
        "eval_datasets.jobs_test.num_profiles=12",
        "eval_datasets.jobs_test.num_posts=3",
    )
    train(*CONTRASTIVE, *evaluated, f"cache_dir={tmp_path}", "exp_name=run")
    run = tmp_path / "run"
    losses = curve(run)
    assert len(losses) == 2 and losses[0] != losses[1]
    start, end = curve(run, "eval/jobs_test/ndcg@20")
    assert min(start, end) >= 0 and max(start, end) <= 1
    record = json.loads((run / "FINAL" / "rankpo.json").read_text())
    assert record["kind"] == "late_interaction" and len(record["settings"]["skip"]) == 32
    model = rankpo.load(run / "FINAL", "cpu")
    assert model.dim == 16 and model.settings.query_prompt == "[Q] "
    ranked = model.rank("soil", ["a field of wheat", "rain", "soil and rain"], top_k=2)
    assert ranked[0]["score"] >= ranked[1]["score"] and len(ranked) == 2
    expected = model.scores(["soil"], ["a field of wheat", "rain", "soil and rain"])[0]
    assert ranked[0]["score"] == pytest.approx(max(expected.tolist()), abs=1e-6)


def weights_after(tmp_path, name, *overrides):
    trainer = trainer_of(*CONTRASTIVE, "trainer.batch_size=6", *overrides, f"cache_dir={tmp_path / name}")
    trainer.policy.train()
    update = trainer.prepare(0)
    trainer.train_step(update)
    return len(update.parts), {key: value.clone() for key, value in trainer.policy.state_dict().items()}


def test_the_gradient_cache_gives_the_update_of_the_whole(tmp_path):
    one, whole = weights_after(tmp_path, "a", "trainer.max_tokens=100000")
    several, parts = weights_after(tmp_path, "b", "trainer.max_tokens=200")
    assert one == 1 and several > 3
    assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    assert "layers.0.linear.weight" in whole


@pytest.mark.parametrize("layout", ["padded"])
def test_layouts_agree(tmp_path, layout):
    auto = weights_after(tmp_path, "auto")[1]
    assert_close(weights_after(tmp_path, layout, f"model.layout={layout}")[1], auto, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("model.query_expansion=max",), "model.query_expansion must be one of none, fixed, min, got 'max'"),
        (("model.expansion_length=8",), "model.expansion_length=8 needs query_expansion=min"),
        (("model.query_expansion=min",), "model.expansion_length must be in 1 to query_max_length=40"),
        (("model.skip=commas",), "model.skip must be punctuation or a list of tokens, got 'commas'"),
        (("model.dim=0",), "model.dim must be >= 1 or null, got 0"),
        (("model.layers=[{type: Dense, out_features: 9}]",), "model.dim=16, but the last of layers has out_features=9"),
        (("model.layers=[{type: LayerNorm}]",), "model.layers: type must be Dense for token vectors"),
        (("model.passage_max_length=3",), "model.passage_max_length must be >= 4 tokens, got 3"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(keys, message):
    with pytest.raises(ValueError) as error:
        compose([*CONTRASTIVE, *keys])
    assert message in str(error.value)


def test_a_length_above_the_positions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model.passage_max_length=600, but the model has 512 positions"):
        trainer_of(*CONTRASTIVE, "model.passage_max_length=600", f"cache_dir={tmp_path}")


def test_temperatures_act_on_scores_that_are_divided_by_the_query(tmp_path):
    """The mean over 40 query tokens at temperature t is the sum at temperature 40·t."""
    mean = weights_after(tmp_path, "mean")[1]
    summed = weights_after(tmp_path, "sum", "model.normalize_scores=false", "loss.temperature=4")[1]
    assert_close(summed, mean, atol=1e-6, rtol=1e-5)


def test_the_memory_of_the_loss_holds_no_tensor_of_all_token_pairs(tmp_path):
    from tests.models.late_interaction.test_maxsim import allocated, vectors

    trainer = trainer_of(*CONTRASTIVE, f"cache_dir={tmp_path}")
    queries, documents = vectors((32,) * 12, 1, torch.float32, 8), vectors((200,) * 60, 2, torch.float32, 8)
    assert allocated(trainer.policy.similarity, queries, documents) <= 1 << 18 < 12 * 32 * 60 * 200 / 4


def test_the_reference_of_adapters_is_the_start_with_its_projection(tmp_path):
    """The projection is trained beside the adapters: a live copy of the start gives the same losses."""
    lora = (*LATE, "loss=dpo", "datasets=[toy_pairs]", "loss.temperature=0.1", "loss.beta=5", "model.use_peft=true")
    for reference in ("adapters", "live"):
        train(
            *lora,
            "trainer.max_steps=3",
            f"trainer.reference={reference}",
            f"cache_dir={tmp_path}",
            f"exp_name={reference}",
        )
    adapters, live = curve(tmp_path / "adapters"), curve(tmp_path / "live")
    assert adapters == pytest.approx(live, abs=1e-6) and len(adapters) == 3
    moved = curve(tmp_path / "live", "train/rewards/chosen")
    assert abs(moved[-1]) > 1e-6
    model = rankpo.load(tmp_path / "adapters" / "FINAL", "cpu")
    start = trainer_of(*lora, f"cache_dir={tmp_path}").policy
    assert not torch.equal(model.layers[0].linear.weight, start.layers[0].linear.weight)
    assert not any("_of_start" in name for name in start.state_dict())


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path):
    """Killed after two of four updates, with momentum and the gradient cache."""
    long = (*CONTRASTIVE, "trainer.max_steps=4", "trainer.save_every=2", "trainer.max_tokens=200", "optimizer=adamw")
    train(*long, f"cache_dir={tmp_path}", "exp_name=whole")
    train(*long, "trainer.max_steps=2", f"cache_dir={tmp_path}", "exp_name=cut")
    cut_off(tmp_path / "cut")
    train(*long, "resume=auto", f"cache_dir={tmp_path}", "exp_name=cut")
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        assert (tmp_path / "cut/FINAL" / name).read_bytes() == (tmp_path / "whole/FINAL" / name).read_bytes()
