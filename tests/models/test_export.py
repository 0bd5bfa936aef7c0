"""FINAL gives the same embeddings wherever it is loaded, and the folder that was there stays until it does."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.reading import read_folder
from rankpo.models.embedding.saving import EmbeddingFolder
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.saving import ExportError
from tests.models.families import backbone
from tests.models.saved import saved

TEXTS = ["soil", "a field of wheat in the rain, and then nothing for a long while", "ploughing", "x", "soil and rain"]
CASES = {
    "cls": ("bert", {"pooling": "cls"}),
    "mean": ("roberta", {"pooling": "mean", "query_prompt": "query: ", "passage_prompt": "passage: "}),
    "last": ("llama", {"pooling": "last", "query_prompt": "Instruct: find\nQuery: "}),
    "not normalised": ("bert", {"pooling": "mean", "normalize": False}),
    "truncated": ("modernbert", {"pooling": "cls", "truncate_dim": 7, "passage_prompt": "p: "}),
    "truncated, not normalised": ("qwen3", {"pooling": "last", "truncate_dim": 7, "normalize": False}),
}


def model_of(family="bert", **settings):
    lengths = {"query_max_length": 40, "passage_max_length": 40}
    return EmbeddingModel(
        backbone(family), EmbeddingInputs(byte_tokenizer(), EmbeddingSettings(**{**lengths, **settings}))
    ).eval()


def with_adapters(model, base):
    """LoRA with weights that matter: B starts at 0, which would make every adapter the identity."""
    config = EmbeddingKind(load_from=str(base), use_peft=True, peft={"lora_r": 3})
    model.backbone.name_or_path = str(base)
    model.backbone = config.adapted(model.backbone, "FEATURE_EXTRACTION")
    for name, parameter in model.backbone.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_sentence_transformers_gives_the_same_embeddings(tmp_path, case):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    family, settings = CASES[case]
    model = model_of(family, **settings)
    saved(model, tmp_path / "FINAL", {})
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "FINAL"), device="cpu")
    for role, encode in (("query", loaded.encode_query), ("passage", loaded.encode_document)):
        ours = model.encode(TEXTS, role=role)
        assert ours.shape == (len(TEXTS), settings.get("truncate_dim", 24))
        np.testing.assert_allclose(encode(TEXTS, batch_size=5), ours, atol=1e-5, rtol=0)
        np.testing.assert_allclose(encode(TEXTS, batch_size=1), ours, atol=1e-5, rtol=0)
    assert loaded.max_seq_length == 40


@pytest.mark.parametrize("case", CASES)
def test_rankpo_loads_what_it_saved(tmp_path, case):
    family, settings = CASES[case]
    model = model_of(family, **settings)
    assert saved(model, tmp_path / "FINAL", {"loss": "RankPOLoss"}) < 1e-5
    loaded = rankpo.load(str(tmp_path / "FINAL"), device="cpu")
    assert loaded.settings == model.settings
    for role in ("query", "passage"):
        np.testing.assert_allclose(loaded.encode(TEXTS, role=role), model.encode(TEXTS, role=role), atol=1e-6)


def test_transformers_alone_finds_every_weight(tmp_path):
    """Pooled by hand, one text at a time; the file's names are those of a bare backbone."""
    from transformers import AutoModel, AutoTokenizer

    model = model_of("bert", pooling="mean")
    saved(model, tmp_path / "FINAL", {})
    loaded, report = AutoModel.from_pretrained(tmp_path / "FINAL", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "FINAL")
    for text, ours in zip(TEXTS, model.encode(TEXTS), strict=True):
        hidden = loaded.eval()(**tokenizer(text, truncation=True, max_length=40, return_tensors="pt")).last_hidden_state
        mean = hidden[0].mean(0)
        np.testing.assert_allclose((mean / mean.norm()).detach().numpy(), ours, atol=1e-5)
    assert "rankpo" not in json.dumps(json.loads((tmp_path / "FINAL" / "config.json").read_text()))


def test_merged_adapters_equal_adapters_on(tmp_path):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    plain = model_of()
    saved(plain, base, {})
    model = with_adapters(model_of(), base)
    expected = model.encode(TEXTS)
    assert np.abs(expected - plain.encode(TEXTS)).max() > 1e-2
    saved(model, tmp_path / "FINAL", {})
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=0)  # the training model stays as it is
    np.testing.assert_allclose(rankpo.load(str(tmp_path / "FINAL"), device="cpu").encode(TEXTS), expected, atol=1e-5)
    again = peft.PeftModel.from_pretrained(backbone("bert"), tmp_path / "FINAL" / "adapter")
    tuned = EmbeddingModel(again.merge_and_unload(), model.inputs).eval()
    np.testing.assert_allclose(tuned.encode(TEXTS), expected, atol=1e-5)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "FINAL" / "adapter"), device="cpu")
    np.testing.assert_allclose(loaded.encode_document(TEXTS), expected, atol=1e-5)


def test_a_tokenizer_without_pad_gets_one(tmp_path):
    """gpt2 has none: sentence-transformers could not make a batch of two."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    settings = EmbeddingSettings(query_max_length=40, passage_max_length=40, pooling="last")
    model = EmbeddingModel(backbone("gpt2"), EmbeddingInputs(tokenizer, settings)).eval()
    saved(model, tmp_path / "FINAL", {})
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "FINAL"), device="cpu")
    np.testing.assert_allclose(loaded.encode_document(TEXTS), model.encode(TEXTS), atol=1e-5)
    assert tokenizer.pad_token is None


def test_an_interrupted_export_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "FINAL"
    old = model_of()
    saved(old, folder, {})
    expected = old.encode(TEXTS)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddingFolder, "card", stop)
    with pytest.raises(KeyboardInterrupt):
        saved(model_of(pooling="cls"), folder, {})
    assert [path.name for path in tmp_path.iterdir()] == ["FINAL"]
    np.testing.assert_allclose(rankpo.load(str(folder), device="cpu").encode(TEXTS), expected, atol=1e-6)


def test_a_folder_that_differs_never_takes_the_name(tmp_path, monkeypatch):
    def spoiled(self, model):
        weights = copy.deepcopy(model.base)
        with torch.no_grad():
            weights.encoder.layer[0].attention.self.query.weight.add_(0.5)
        return weights

    monkeypatch.setattr(EmbeddingFolder, "weights", spoiled)
    with pytest.raises(ExportError, match="after a reload, embeddings differ by"):
        saved(model_of(), tmp_path / "FINAL", {})
    assert not list(tmp_path.iterdir())


def test_no_file_names_a_path_of_this_machine(tmp_path):
    model = with_adapters(model_of(), tmp_path)
    saved(model, tmp_path / "FINAL", {"base_model": str(tmp_path), "loss": "x"})
    texts = [path for path in (tmp_path / "FINAL").rglob("*") if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) >= 8
    for path in texts:
        if path.name != "adapter_config.json":  # peft finds the base by it
            assert str(tmp_path.parent) not in path.read_text(), path


def test_settings_from_sentence_transformers_files(tmp_path):
    """Without rankpo.json: what the older and the newer layout say, read back."""
    model = model_of(pooling="last", query_prompt="q: ", passage_prompt="p: ", truncate_dim=8, normalize=False)
    saved(model, tmp_path / "FINAL", {})
    (tmp_path / "FINAL" / "rankpo.json").unlink()
    assert EmbeddingSettings(**read_folder(tmp_path / "FINAL").values) == model.settings
    pooling = tmp_path / "FINAL" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 24, "pooling_mode": "cls", "include_prompt": True}))
    modules = tmp_path / "FINAL" / "modules.json"
    modules.write_text(
        modules.read_text().replace("sentence_transformers.models.Pooling", "sentence_transformers.x.Pooling")
    )
    assert read_folder(tmp_path / "FINAL").values["pooling"] == "cls"
    shutil.rmtree(tmp_path / "FINAL" / "1_Pooling")
    modules.unlink()
    assert read_folder(tmp_path / "FINAL") is None


def test_weights_are_those_of_the_model(tmp_path):
    from safetensors.torch import load_file

    model = model_of()
    saved(model, tmp_path / "FINAL", {})
    assert_close(load_file(tmp_path / "FINAL" / "model.safetensors"), dict(model.base.state_dict()), rtol=0, atol=0)
