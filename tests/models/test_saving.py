"""One save for every kind: FINAL is proved before it has its name, and holds no path of this machine."""

import copy
import json

import pytest
import torch

import rankpo
from rankpo.models.kinds import kind_class, kind_names
from rankpo.models.load import ignore
from rankpo.models.saving import ExportError, without_paths
from tests.models.saved import FOLDERS

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 600,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 1200,
}
SHORT = {"max_length": 200, "max_prompt_length": 100}
KEYS = {
    "embedding": {"random": BERT, "query_prompt": "find: "},
    "late_interaction": {"random": BERT, "dim": 6, "query_prompt": "find: ", "query_expansion": "fixed", "skip": ["a"]},
    "reranker": {"random": BERT, "max_length": 100},
    "listwise": {"random": LLAMA, "window": 4, "stride": 2, "max_length": 1000},
    "causal_lm": {"random": LLAMA, **SHORT},
    "reward_model": {"random": LLAMA, **SHORT},
}
KINDS = sorted(KEYS)


def model_of(kind, **keys):
    torch.manual_seed(0)
    made = kind_class(kind)(**KEYS[kind], **keys)
    return made, made.build(made.open_inputs(ignore), ignore).eval()


def test_every_kind_is_tried():
    assert set(kind_names()) >= set(KINDS) == set(FOLDERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_differs_never_takes_the_name(tmp_path, kind, monkeypatch):
    """What was there before stays, so that `resume=auto` never takes an unproved FINAL for a finished run."""
    made, model = model_of(kind)
    (tmp_path / "FINAL").mkdir()
    (tmp_path / "FINAL" / "before").touch()
    monkeypatch.setattr(FOLDERS[kind], "difference", lambda *arguments: float("nan"))
    with pytest.raises(ExportError, match=f"FINAL: after a reload, {FOLDERS[kind].output} differ by nan"):
        made.save(tmp_path / "FINAL", model, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["FINAL", "before"]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights_are_seen(tmp_path, kind, monkeypatch):
    """The comparison itself: weights that changed on their way to the folder."""
    made, model = model_of(kind)
    weights = FOLDERS[kind].weights

    def spoiled(self, model):
        given = copy.deepcopy(weights(self, model))
        with torch.no_grad():
            for name, parameter in given.named_parameters():
                if parameter.dim() > 1 and "pooler" not in name:
                    parameter.mul_(-1.5)
        return given

    if kind == "reward_model":  # its new head is 0, as is every reward
        torch.nn.init.normal_(model.reward_head.linear.weight)
    monkeypatch.setattr(FOLDERS[kind], "weights", spoiled)
    with pytest.raises(ExportError, match="after a reload"):
        made.save(tmp_path / "FINAL", model, {})


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_names_a_path_of_this_machine(tmp_path, kind, adapters):
    made, model = model_of(kind, use_peft=adapters)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    description = {
        "base_model": str(elsewhere),
        "loss": "x",
        "loss_values": {"file": str(elsewhere / "a.yaml"), "beta": 0.1},
        "data": {"records": ["~/data/private.jsonl", "./here/it.jsonl"]},
    }
    made.save(tmp_path / "FINAL", model, description)
    texts = [path for path in (tmp_path / "FINAL").rglob("*") if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) >= 5
    for path in texts:
        if path.name != "adapter_config.json":  # peft finds the base by it
            assert str(tmp_path.parent) not in path.read_text(), path
            assert "~/data" not in path.read_text() and "./here" not in path.read_text(), path
    record = json.loads((tmp_path / "FINAL" / "rankpo.json").read_text())
    assert record["kind"] == kind and record["base_model"] == "elsewhere"
    assert record["loss_values"] == {"file": "a.yaml", "beta": 0.1}


def test_what_is_no_path_stays():
    kept = {"a": "org/model", "b": ["and/or", "1/2", "", 3, None, True], "c": "a text: /x is no path in it"}
    assert without_paths(kept) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_again_it_is_of_its_kind_with_its_settings(tmp_path, kind):
    made, model = model_of(kind)
    assert made.save(tmp_path / "FINAL", model, {}) < 1e-4
    loaded = rankpo.load(tmp_path / "FINAL", "cpu")
    assert loaded.kind == kind
    assert {**loaded.settings.to_json(), "chat_template": 0} == {**model.settings.to_json(), "chat_template": 0}
