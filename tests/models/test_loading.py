"""What is refused at the door: code of strangers, pickles, folders that are not there."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rankpo.models import loading, random_weights
from rankpo.models.adapting import open_adapters
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.loading import LoadingError
from rankpo.models.tensors import read_tensors
from tests.models.families import backbone


def folder_of(tmp_path, family="bert"):
    backbone(family).save_pretrained(tmp_path)
    random_weights.byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load(folder, **options):
    source = loading.resolve("", str(folder))
    return loading.load_backbone(source, **options)


def test_weights_come_as_float32_whatever_was_saved(tmp_path):
    model = backbone("bert")
    model.bfloat16().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name].float())


def test_pickled_weights_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    torch.save(backbone("bert").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadingError, match=r"only pickled weights \(\*\.bin\), which can run code"):
        load(folder)


def test_code_in_a_folder_is_not_run_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = folder_of(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "strange"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(LoadingError, match=r"needs code from its repository.*model\.trust_remote_code=true"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("given", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there(given):
    with pytest.raises(LoadingError, match=f"model.name_or_path={given}: no such folder"):
        loading.resolve(given)
    with pytest.raises(LoadingError, match=f"model.load_from={given}: no such folder"):
        loading.resolve("some/model", given)


def test_damaged_and_strange_folders(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadingError, match=r"cannot load .*model\.safetensors"):
        load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(LoadingError, match="cannot load"):
        load(folder)
    with pytest.raises(LoadingError, match=r"model\.random\.model_type=bertt is not a model type"):
        random_weights.random_backbone({"model_type": "bertt"})
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    assert random_weights.random_backbone({"model_type": "mpnet", **sizes}).config._attn_implementation == "eager"


@pytest.mark.parametrize("size", [0, 5, 500, -7])
def test_weights_that_were_cut_are_one_line(tmp_path, size):
    folder = folder_of(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LoadingError, match=f"a weight file of {folder} is damaged .*; copy it again"):
        load(folder)
    with pytest.raises(LoadingError, match=r"model\.safetensors is damaged .*; copy it again"):
        read_tensors(path)


def test_weights_of_other_sizes_are_one_line(tmp_path):
    folder = folder_of(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 41}))
    with pytest.raises(LoadingError, match="tensors have other sizes than its configuration states"):
        load(folder)


def test_adapters_that_were_cut_or_are_of_another_model_are_one_line(tmp_path):
    lora = LoraConfig(r=2, target_modules=["query"])
    get_peft_model(backbone("bert"), lora).save_pretrained(tmp_path)
    with pytest.raises(LoadingError, match="tensors have other sizes than its configuration states"):
        open_adapters(backbone("bert", hidden_size=30), str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LoadingError, match=r"is damaged .*; copy it again"):
        open_adapters(backbone("bert"), str(tmp_path))


def test_settings_of_a_folder_win_over_the_yaml_and_the_command_line_over_both(tmp_path):
    folder = folder_of(tmp_path)
    settings = {"pooling": "cls", "normalize": False, "query_prompt": "saved: ", "passage_prompt": ""}
    settings |= {"query_max_length": 30, "passage_max_length": 40, "truncate_dim": None}
    (folder / "rankpo.json").write_text(json.dumps({"kind": "embedding", "settings": settings}))
    said = []
    config = EmbeddingKind(load_from=str(folder), pooling="last", query_max_length=50)
    opened = config.open_inputs(said.append, explicit=["query_max_length"]).settings
    assert (opened.pooling, opened.query_prompt, opened.query_max_length) == ("cls", "saved: ", 50)
    assert any("saved with pooling='cls'" in message for message in said)
    assert any("model.query_max_length=50 instead of 30" in message for message in said)
