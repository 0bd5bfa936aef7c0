"""Folders in transformers 4's words: what 5 wrote is still read by 5, and what 4 would miss stands there."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoTokenizer

from rankpo.models.older_transformers import for_older_readers
from tests.models.saved import saved as save_model
from tests.models.test_listwise import model_of as listwise_of
from tests.models.test_reranker import model_of as reranker_of
from tests.toy_tokenizers import CHATML, byte_bpe


def saved(folder, tokenizer, **rope):
    """A small Llama and this tokenizer, as transformers 5 writes them, and the model's output on a few tokens."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **sizes, vocab_size=len(tokenizer), rope_parameters=rope)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, 1e6, None),
        ({"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}, 5e5, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_the_base_of_rotations_stands_where_4_looks(tmp_path, rope, theta, scaling):
    """4's Llama reads rope_theta and rope_scaling; 5 still gives the same numbers, and another base gives others."""
    model = saved(tmp_path, byte_bpe(), **rope)
    for_older_readers(tmp_path)
    config = read(tmp_path / "config.json")
    assert (config["rope_theta"], config.get("rope_scaling")) == (theta, scaling)
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        wanted = model(ids).last_hidden_state
        assert_close(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, wanted, atol=1e-6, rtol=0)
        config["rope_parameters"]["rope_theta"] = 10.0
        config.pop("rope_scaling", None)
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert (AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state - wanted).abs().max() > 1e-3


def test_tokenizers_have_names_that_4_knows(tmp_path):
    tokenizer = byte_bpe(template=CHATML, special=("<|im_start|>", "<|im_end|>"))
    saved(tmp_path, tokenizer, rope_type="default", rope_theta=1e4)
    for_older_readers(tmp_path)
    values = read(tmp_path / "tokenizer_config.json")
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert "extra_special_tokens" not in values
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nä [A]</s><|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == "user\nä [A]"
    assert again.all_special_ids == tokenizer.all_special_ids


@pytest.mark.parametrize("name", ["encoder", "decoder", "yes_no", "listwise"])
def test_every_export_is_written_so(tmp_path, name):
    model = listwise_of() if name == "listwise" else reranker_of(name)
    save_model(model, tmp_path / "FINAL")
    assert read(tmp_path / "FINAL" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    config = read(tmp_path / "FINAL" / "config.json")
    assert config.get("rope_theta") == config.get("rope_parameters", {}).get("rope_theta")
