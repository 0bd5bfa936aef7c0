"""Quantised and bfloat16 weights under adapters: how they load, train, and leave the run."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.frozen import WeightForm
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.weight_types import torch_dtype
from tests.runs import compose, curve, train, trainer_of

with_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
LORA = (
    "model.use_peft=true",
    "model.peft.lora_r=4",
    "optimizer.lr=1e-2",
    "trainer.batch_size=4",
    "trainer.log_every=1",
)
LOSSES = {
    "contrastive": ("loss=contrastive", "datasets=[toy_contrastive]"),
    "rankpo": ("loss=rankpo", "datasets=[toy_pairs]"),
    "dpo": ("loss=dpo", "datasets=[toy_chat]"),
    "sft": ("loss=sft", "datasets=[toy_chat]"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random Llama with a next-token head, stored in bfloat16."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def options(checkpoint, folder, loss, *more):
    weights = ("model=base", f"model.name_or_path={checkpoint}", *LORA)
    return (*weights, *LOSSES[loss], f"cache_dir={folder}", f"run_dir={folder}/run", "trainer.max_steps=2", *more)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16"),
        ({"quantization": "2bit", "under_adapters": True}, "must be 4bit, 8bit or null"),
        ({"quantization": "4bit"}, "needs use_peft=true"),
        ({"quantization": "4bit", "under_adapters": True, "random": True}, "needs a checkpoint"),
    ],
)
def test_refusals(values, words):
    with pytest.raises(ValueError, match=words):
        WeightForm(**values)


def test_auto_keeps_a_stored_bfloat16_on_a_gpu_alone(monkeypatch):
    def chosen(stored, gpu, **values):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        return torch_dtype(WeightForm(**values), stored)

    assert chosen("bfloat16", True, under_adapters=True) == torch.bfloat16
    assert chosen("bfloat16", False, under_adapters=True) == torch.float32
    assert chosen("bfloat16", True) == torch.float32
    assert chosen("float32", True, under_adapters=True) == torch.float32
    assert chosen("float32", False, dtype="bfloat16") == torch.bfloat16


def test_trained_weights_in_bfloat16_are_refused(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16"):
        compose(options(checkpoint, tmp_path, "rankpo", "model.use_peft=false", "model.dtype=bfloat16"))


def frozen_types(trainer):
    parameters = trainer.policy.named_parameters()
    return {p.dtype for name, p in parameters if not p.requires_grad and "layers" in name and "norm" not in name}


def test_weights_under_adapters_in_bfloat16(checkpoint, tmp_path, capsys):
    trainer = trainer_of(*options(checkpoint, tmp_path, "rankpo", "model.dtype=bfloat16"))
    assert frozen_types(trainer) == {torch.bfloat16}
    assert {p.dtype for p in trainer.policy.parameters() if p.requires_grad} == {torch.float32}
    train(*options(checkpoint, tmp_path, "rankpo", "model.dtype=bfloat16"))
    assert "merged into the float32 weights" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/FINAL/config.json").read_text())["dtype"] == "float32"


@with_bitsandbytes
@pytest.mark.parametrize(
    ("loss", "bits"), [("rankpo", "4bit"), ("dpo", "8bit"), ("contrastive", "8bit"), ("sft", "4bit")]
)
def test_a_quantised_base_trains_and_final_is_merged_without_it(checkpoint, tmp_path, capsys, loss, bits):
    given = options(checkpoint, tmp_path, loss, f"model.quantization={bits}")
    types = frozen_types(trainer_of(*given))
    assert types == {torch.uint8 if bits == "4bit" else torch.int8}
    train(*given)
    assert all(0 < value < 10 for value in curve(tmp_path / "run"))
    adapters = load_file(tmp_path / "run/FINAL/adapter/adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in adapters.items() if "lora_B" in name)  # they start at 0
    said = capsys.readouterr().err
    assert f"its frozen weights in {bits}, differ from it by at most" in said
    config = json.loads((tmp_path / "run/FINAL/config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    if loss in ("rankpo", "contrastive"):
        assert rankpo.load(tmp_path / "run/FINAL").encode(["a text"]).shape == (1, 64)


@with_bitsandbytes
def test_an_evaluation_does_not_repack_the_weights(checkpoint, tmp_path, monkeypatch):
    """bitsandbytes repacks 4-bit weights of a CPU at an evaluation, for a kernel that has no gradient."""
    from bitsandbytes.nn import modules

    def repacked(*arguments, **named):
        raise AssertionError("the weights were repacked")

    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", repacked)
    trainer = trainer_of(*options(checkpoint, tmp_path, "rankpo", "model.quantization=4bit"))
    trainer.policy.encode(["a text"])
    trainer.policy.train()
    trainer.backward(trainer.prepare(0))
    assert all(p.grad.abs().max() > 0 for name, p in trainer.policy.named_parameters() if "lora_B" in name)


@with_bitsandbytes
def test_final_is_the_exact_base_with_the_trained_adapters(checkpoint, tmp_path):
    """FINAL's weights: the stored ones in float32 plus scale · B · A of the adapters beside it."""
    train(*options(checkpoint, tmp_path, "rankpo", "model.quantization=4bit"))
    final = load_file(tmp_path / "run/FINAL/model.safetensors")
    adapters = load_file(tmp_path / "run/FINAL/adapter/adapter_model.safetensors")
    stored = load_file(checkpoint / "model.safetensors")
    name = "layers.0.self_attn.q_proj"
    a, b = (adapters[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    base = stored[f"model.{name}.weight"].float()
    assert (b @ a).abs().max() > 1e-4
    torch.testing.assert_close(final[f"{name}.weight"], base + 32 / 4 * b @ a)


@with_bitsandbytes
def test_the_reference_is_the_quantised_base_with_the_adapters_off(checkpoint, tmp_path):
    """Before the first update policy and reference are one model, so the loss of DPO is log 2."""
    train(*options(checkpoint, tmp_path, "dpo", "model.quantization=4bit", "trainer.reference=adapters"))
    assert curve(tmp_path / "run")[0] == pytest.approx(0.6931472, abs=1e-6)


def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        train(*options(checkpoint, tmp_path, "rankpo", "model.quantization=4bit"))
