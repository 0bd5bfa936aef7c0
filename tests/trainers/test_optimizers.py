"""Optimizers of the group `optimizer`: which weights they take, and that their steps are those of torch."""

import sys

import pytest
import torch
from torch.testing import assert_close

from rankpo.config.compose import compose as compose_run
from rankpo.errors import ConfigError
from rankpo.tasks.work.train import refuse_unfit
from rankpo.trainers.muon import Muon
from tests.runs import CONTRASTIVE, curve, train, trainer_of

MUON = (*CONTRASTIVE, "optimizer=muon", "optimizer.lr=1e-3")


def test_muon_takes_the_matrices_inside_and_adamw_the_rest(tmp_path):
    trainer = trainer_of(*MUON, f"cache_dir={tmp_path}")
    names = {id(p): name for name, p in trainer.policy.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups]
    flags = [group["muon"] for group in trainer.optimizer.param_groups]
    assert flags == [True, False, False]
    assert all("layer" in name and name.endswith("weight") for name in groups[0])
    assert all("embeddings" in name for name in groups[1])
    assert all(p.dim() == 1 for p in trainer.optimizer.param_groups[2]["params"])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.01, 0.0]
    assert sum(map(len, groups)) == sum(p.requires_grad for p in trainer.policy.parameters())


def test_the_head_of_a_language_model_is_adamws(tmp_path):
    recipe = ("model=tiny_llama", "loss=sft", "datasets=[toy_chat]", "model.random.num_hidden_layers=1", *MUON[-2:])
    trainer = trainer_of(*recipe, f"cache_dir={tmp_path}")
    first = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
    base = trainer.policy.base
    assert id(base.get_output_embeddings().weight) not in first and id(base.get_input_embeddings().weight) not in first
    assert len(first) == 7  # four of attention, three of the MLP


def test_the_steps_are_those_of_torchs_optimizers():
    torch.manual_seed(0)
    matrix, other = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(5))
    alone = [torch.nn.Parameter(p.detach().clone()) for p in (matrix, other)]
    both = Muon([{"params": [matrix], "muon": True}, {"params": [other], "weight_decay": 0.0}], lr=0.1)
    expected = (
        torch.optim.Muon([alone[0]], lr=0.05, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([alone[1]], lr=0.05, weight_decay=0.0),
    )
    for group in both.param_groups:
        group["lr"] = 0.05  # as a schedule sets it
    for _ in range(3):
        for ours, theirs in zip((matrix, other), alone, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        both.step()
        for optimizer in expected:
            optimizer.step()
    assert_close([matrix, other], alone, rtol=0, atol=0)
    assert set(both.state) == {matrix, other}


def test_an_interrupted_run_with_muon_ends_with_the_same_curve(tmp_path):
    whole = (*MUON, "trainer.max_steps=4", f"cache_dir={tmp_path}")
    train(*whole, "exp_name=whole")
    train(*whole, "exp_name=cut", "trainer.save_every=2", "trainer.keep_checkpoints=9")
    (tmp_path / "cut" / "FINAL").rename(tmp_path / "away")
    (tmp_path / "cut" / "checkpoints" / "step-4").rename(tmp_path / "step-4")
    train(*whole, "exp_name=cut", "trainer.save_every=2", "trainer.keep_checkpoints=9", "resume=auto")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["FSDP", "DEEPSPEED-2"])
def test_muon_is_refused_where_matrices_are_divided(strategy, monkeypatch):
    monkeypatch.setattr("rankpo.tasks.work.train.name_of", lambda accelerator: strategy)
    with pytest.raises(ConfigError, match=f"optimizer=muon needs whole matrices, and {strategy} divides them"):
        refuse_unfit(compose_run(MUON), None)


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_8bit_paged"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "rankpo.trainers.optimizers", None)
    monkeypatch.delitem(sys.modules, "rankpo.trainers.optimizers")
    monkeypatch.setattr("importlib.util.find_spec", lambda *given: None)
    with pytest.raises(ConfigError, match=rf"optimizer={name}.* bitsandbytes: pip install"):
        compose_run([*CONTRASTIVE, f"optimizer={name}"])


def test_the_paged_form_needs_a_gpu(tmp_path):
    pytest.importorskip("bitsandbytes")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="adamw_8bit_paged needs a CUDA GPU; set optimizer=adamw_8bit"):
        trainer_of(*CONTRASTIVE, "optimizer=adamw_8bit_paged", "optimizer.lr=1e-4", f"cache_dir={tmp_path}")


def test_the_paged_form_alone_asks_for_pages(monkeypatch):
    optimizers = pytest.importorskip("rankpo.trainers.optimizers", exc_type=ImportError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    weights = [torch.nn.Parameter(torch.zeros(3))]
    made = [kind(weights) for kind in (optimizers.AdamW8bit, optimizers.PagedAdamW8bit)]
    assert [optimizer.is_paged for optimizer in made] == [False, True]
