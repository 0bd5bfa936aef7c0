"""Checkpoints of sentence-transformers as embedding models: the same vectors before training, after it, and as FINAL."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import FunnelBaseModel

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer, random_backbone
from tests.models.families import backbone
from tests.runs import train
from tests.thinning import thinned

st = pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)

TEXTS = ["soil", "a field of Wheat in the rain, and then nothing for a long while", "ploughing", "x", "SOIL and rain"]
PROMPTS = {"query": "find: ", "document": "text: "}
# family, pooling, layers, further keys
CASES = {
    "cls": ("bert", "cls", [], {}),
    "mean": ("bert", "mean", [], {}),
    "last": ("llama", "lasttoken", [], {}),
    "max": ("bert", "max", [], {}),
    "sqrt": ("roberta", "mean_sqrt_len_tokens", [], {}),
    "weighted": ("llama", "weightedmean", [], {}),
    "two ways": ("bert", ("cls", "mean"), [], {}),
    "ways in another order": ("bert", ("max", "cls"), [], {}),
    "normalised": ("bert", "cls", [Normalize()], {}),
    "dot": ("bert", "mean", [], {"similarity_fn_name": "dot"}),
    "prompts": ("bert", "mean", [], {"prompts": PROMPTS}),
    "prompts left out": ("bert", "mean", [Normalize()], {"prompts": PROMPTS, "include_prompt": False}),
    "prompts left out, cls": ("bert", "cls", [], {"prompts": PROMPTS, "include_prompt": False}),
    "prompts left out, weighted": ("llama", "weightedmean", [], {"prompts": PROMPTS, "include_prompt": False}),
    "prompts left out, max": ("roberta", ("max", "mean"), [], {"prompts": PROMPTS, "include_prompt": False}),
    "dense": ("bert", "mean", [Dense(24, 10)], {}),
    "dense, normalised": ("llama", "lasttoken", [Dense(24, 40, activation_function=torch.nn.ReLU()), Normalize()], {}),
    "two dense": (
        "bert",
        "cls",
        [Dense(24, 30, bias=False), Dense(30, 12, activation_function=torch.nn.Identity())],
        {},
    ),
    "residual": ("bert", "mean", [Dense(24, 10, use_residual=True)], {"similarity_fn_name": "dot"}),
    "dense on two ways": ("bert", ("mean", "max"), [Dense(48, 8), Normalize()], {"prompts": PROMPTS}),
    "dense behind length 1": ("bert", "mean", [Normalize(), Dense(24, 9)], {"similarity_fn_name": "dot"}),
    "layer norm": ("bert", "mean", [LayerNorm(24)], {}),
    "short": ("bert", "mean", [], {"max_seq_length": 9}),
    "cut": ("bert", "cls", [], {"truncate_dim": 7}),
    "lower case": ("bert", "mean", [], {"do_lower_case": True}),
}


def folder_of(path, case):
    """A folder that sentence-transformers wrote, with random weights."""
    family, pooling, layers, keys = CASES[case]
    backbone(family).save_pretrained(path / "plain")
    byte_tokenizer().save_pretrained(path / "plain")
    torch.manual_seed(3)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    transformer = Transformer(
        str(path / "plain"),
        max_seq_length=keys.get("max_seq_length", 60),
        do_lower_case=keys.get("do_lower_case", False),
    )
    transformer.model.config.use_cache = False
    model = st.SentenceTransformer(
        modules=[transformer, Pooling(24, pooling, keys.get("include_prompt", True)), *layers],
        prompts=keys.get("prompts"),
        similarity_fn_name=keys.get("similarity_fn_name"),
        truncate_dim=keys.get("truncate_dim"),
        device="cpu",
    )
    model.save(str(path / "theirs"))
    if keys.get("do_lower_case"):  # 6.2 writes it into the tokenizer, older ones beside it
        byte_tokenizer().save_pretrained(path / "theirs")
        config = json.loads((path / "theirs" / "sentence_bert_config.json").read_text())
        (path / "theirs" / "sentence_bert_config.json").write_text(json.dumps({**config, "do_lower_case": True}))
    if "truncate_dim" in keys:  # as rankpo's own folders state it
        general = json.loads((path / "theirs" / "config_sentence_transformers.json").read_text())
        general["truncate_dim"] = keys["truncate_dim"]
        (path / "theirs" / "config_sentence_transformers.json").write_text(json.dumps(general))
    shutil.rmtree(path / "plain")
    return path / "theirs"


def theirs_of(folder, case, role):
    """Vectors whose inner products are the similarity that the folder states."""
    keys = CASES[case][3]
    loaded = st.SentenceTransformer(str(folder), device="cpu", truncate_dim=keys.get("truncate_dim"))
    vectors = (loaded.encode_query if role == "query" else loaded.encode_document)(TEXTS, batch_size=5)
    if loaded.similarity_fn_name == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def compare(model, folder, case):
    for role in ("query", "passage"):
        np.testing.assert_allclose(model.encode(TEXTS, role=role), theirs_of(folder, case, role), atol=1e-5, rtol=0)


IN_CI = (
    *("last", "two ways", "prompts left out, cls", "prompts left out, weighted", "two dense", "residual"),
    *("dense on two ways", "dense behind length 1", "layer norm", "short", "cut", "lower case"),
)


@pytest.mark.parametrize("case", thinned(CASES, keep=IN_CI))
def test_vectors_are_theirs_before_and_after_training_and_as_final(tmp_path, case):
    folder = folder_of(tmp_path, case)
    said = []
    kind = EmbeddingKind(name_or_path=str(folder))
    model = kind.build(kind.open_inputs(said.append), said.append).eval()
    assert any("(from sentence-transformers' files)" in line for line in said)
    compare(model, folder, case)
    before = model.encode(TEXTS)
    trained = train(
        "loss=contrastive", "kind=embedding", "model=base", f"model.name_or_path={folder}", "datasets=[toy_contrastive]",
        "trainer.max_steps=2", "trainer.batch_size=4", "optimizer.lr=0.01", f"cache_dir={tmp_path}", "exp_name=a",
        f"run_dir={tmp_path}/run",
    )  # fmt: skip
    del trained
    final = rankpo.load(tmp_path / "run" / "FINAL", "cpu")
    assert np.abs(final.encode(TEXTS) - before).max() > 1e-4
    compare(final, tmp_path / "run" / "FINAL", case)
    (tmp_path / "run" / "FINAL" / "rankpo.json").unlink()
    compare(rankpo.load(tmp_path / "run" / "FINAL", "cpu"), tmp_path / "run" / "FINAL", case)


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
GENERAL = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "modules.json",
            [MODULES[0], {**MODULES[1], "type": "sentence_transformers.models.WordEmbeddings"}],
            "WordEmbeddings",
        ),
        ("modules.json", [{**MODULES[0], "type": "custom_st.Transformer"}, MODULES[1]], "does not run the code of"),
        ("modules.json", [{**MODULES[0], "path": "../other"}, MODULES[1]], "lies outside the folder"),
        ("modules.json", [MODULES[0], {**MODULES[1], "path": "/etc"}], "lies outside the folder"),
        ("1_Pooling/config.json", {"pooling_mode": "attention", "embedding_dimension": 24}, "has no 'attention'"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "temperature": 2}, "has no 'temperature'"),
        ("sentence_bert_config.json", {"max_seq_length": 9, "pad_to": 8}, "has no 'pad_to'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        (GENERAL, {"similarity_fn_name": "euclidean"}, "similarity euclidean"),
        (GENERAL, {"scale": 2}, "has no 'scale'"),
        ("modules.json", {}, "must hold a list"),
        (GENERAL, None, "is not JSON"),
    ],
)
def test_what_would_give_other_vectors_is_refused_by_name(tmp_path, file, change, message):
    folder = folder_of(tmp_path, "mean")
    (folder / file).write_text("{" if change is None else json.dumps(change))
    kind = EmbeddingKind(name_or_path=str(folder))
    with pytest.raises((ConfigError, LoadingError), match=message):
        kind.open_inputs(print)


def test_the_oldest_layout(tmp_path):
    """0_Transformer, the settings of RoBERTa's own file, one boolean per pooling."""
    folder = folder_of(tmp_path, "dense, normalised")
    (folder / "0_Transformer").mkdir()
    for path in list(folder.glob("*.*")):
        if path.name not in ("modules.json", GENERAL):
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer" / "sentence_bert_config.json").unlink()
    (folder / "0_Transformer" / "sentence_roberta_config.json").write_text(
        '{"max_seq_length": 12, "do_lower_case": false}'
    )
    old = {"word_embedding_dimension": 24, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(old))
    kind = EmbeddingKind(name_or_path=str(folder))
    model = kind.build(kind.open_inputs(print), print).eval()
    assert model.settings.query_max_length == 12
    compare(model, folder, "dense, normalised")


def test_the_command_line_wins_and_that_is_said(tmp_path):
    folder = folder_of(tmp_path, "cls")
    kind, said = EmbeddingKind(name_or_path=str(folder), pooling="mean", query_max_length=20), []
    settings = kind.open_inputs(said.append, ["pooling"]).settings
    assert (settings.pooling, settings.query_max_length) == ("mean", 60)
    assert any("model.pooling='mean' instead of 'cls'" in line for line in said)
    assert any(
        line.endswith("mean pooling, normalised, 60 tokens (from sentence-transformers' files)") for line in said
    )


@pytest.mark.parametrize(
    ("stated", "used", "line"),
    [
        ({"document": "d: ", "passage": "p: ", "sts": "same: "}, "d: ", "the prompts passage, sts are not used"),
        ({"query": "", "document": "", "passage": "p: "}, "", "the prompts passage are not used"),
        ({"query": "", "passage": "p: ", "corpus": "c: "}, "p: ", "passages get its prompt passage; sentence-transf"),
        ({"query": None, "document": None, "corpus": "c: "}, "c: ", "passages get its prompt corpus; sentence-transf"),
    ],
)
def test_the_prompt_of_passages(tmp_path, stated, used, line):
    """The first that is stated, which may be empty. Without `document`, sentence-transformers 6.2 adds an empty one."""
    folder = folder_of(tmp_path, "mean")
    general = json.loads((folder / GENERAL).read_text())
    (folder / GENERAL).write_text(json.dumps({**general, "prompts": stated}))
    said = []
    settings = EmbeddingKind(name_or_path=str(folder)).open_inputs(said.append).settings
    assert settings.passage_prompt == used
    assert any(line in text for text in said)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_two_way_attention(tmp_path, family, layout):
    """The first token's state depends on the last; FINAL is two-way in sentence-transformers too."""
    backbone(family).save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    lengths = {"query_max_length": 60, "passage_max_length": 60}
    kind = EmbeddingKind(name_or_path=str(tmp_path / "plain"), bidirectional=True, layout=layout, **lengths)
    model = kind.build(kind.open_inputs(print), print).eval()
    assert model.settings.pooling == "mean" and model.packed == (layout == "auto")
    one_way = EmbeddingKind(name_or_path=str(tmp_path / "plain"), pooling="mean", **lengths)
    causal = one_way.build(one_way.open_inputs(print), print).eval()
    assert np.abs(model.encode(TEXTS) - causal.encode(TEXTS)).max() > 1e-3
    assert kind.save(tmp_path / "FINAL", model, {}) < 1e-5
    compare(model, tmp_path / "FINAL", "mean")
    (tmp_path / "FINAL" / "rankpo.json").unlink()
    again = rankpo.load(tmp_path / "FINAL", "cpu")
    assert again.settings.bidirectional
    compare(again, tmp_path / "FINAL", "mean")
    if layout == "auto":
        back = EmbeddingKind(name_or_path=str(tmp_path / "FINAL"), bidirectional=False)
        restored = back.build(back.open_inputs(print, ["bidirectional"]), print).eval()
        np.testing.assert_allclose(restored.encode(TEXTS), causal.encode(TEXTS), atol=1e-5)
        assert back.save(tmp_path / "causal", restored, {}) < 1e-5


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
EAGER = {  # Architectures without sdpa; in the last two, padding changes the hidden states.
    "mpnet": {**SMALL, "max_position_embeddings": 80},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "convbert": {**SMALL, "embedding_size": 24, "num_attention_heads": 4, "head_ratio": 2, "conv_kernel_size": 3},
    "fnet": SMALL,
}


@pytest.mark.parametrize("family", EAGER)
def test_architectures_that_run_with_eager_attention_alone(tmp_path, family):
    """all-mpnet-base-v2 loads without a key, and a text's vector does not depend on its neighbours."""
    torch.manual_seed(1)
    body = random_backbone({"model_type": family, **EAGER[family], "max_position_embeddings": 80})
    folder = saved_by_them(tmp_path, body)
    kind, said = EmbeddingKind(name_or_path=str(folder)), []
    model = kind.build(kind.open_inputs(said.append), said.append).eval()
    assert any(line.endswith("padded eager") for line in said)
    theirs = st.SentenceTransformer(str(folder), device="cpu")
    alone = np.concatenate([theirs.encode_document([text], normalize_embeddings=True) for text in TEXTS])
    np.testing.assert_allclose(model.encode(TEXTS), alone, atol=1e-5, rtol=0)
    assert model.equal_lengths == (family in ("convbert", "fnet"))


FUNNEL = {"block_sizes": [1, 1], "d_model": 24, "n_head": 3, "d_head": 8, "d_inner": 40, "num_decoder_layers": 1}


def test_a_model_that_shortens_its_sequences_is_refused(tmp_path):
    """Funnel with its decoder, which restores the length, has a vector for every token."""
    body = random_backbone({"model_type": "funnel", **FUNNEL}, "eager")
    folder = saved_by_them(tmp_path, body)
    theirs = st.SentenceTransformer(str(folder), device="cpu")
    alone = np.concatenate([theirs.encode_document([text], normalize_embeddings=True) for text in TEXTS])
    np.testing.assert_allclose(rankpo.load(folder, "cpu").encode(TEXTS), alone, atol=1e-5, rtol=0)
    FunnelBaseModel(body.config).save_pretrained(folder)
    with pytest.raises(LoadingError, match="FunnelBaseModel returns 2 hidden states for 3 tokens"):
        rankpo.load(folder, "cpu")


def saved_by_them(path, body, tokenizer=None):
    body.save_pretrained(path / "plain")
    (tokenizer or byte_tokenizer()).save_pretrained(path / "plain")
    transformer = Transformer(str(path / "plain"), max_seq_length=40)
    st.SentenceTransformer(modules=[transformer, Pooling(24, "mean")], device="cpu").save(str(path / "theirs"))
    return path / "theirs"


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_tokenizer_that_truncates_at_the_left(tmp_path, layout):
    """The end of a long text is read, also of one whose beginning alone would be stored."""
    folder = saved_by_them(tmp_path, backbone("bert"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": "left"}))
    kind = EmbeddingKind(name_or_path=str(folder), layout=layout)
    model = kind.build(kind.open_inputs(print), print).eval()
    texts = [*TEXTS, "soil " * 9000 + "rain"]
    theirs = st.SentenceTransformer(str(folder), device="cpu").encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(model.encode(texts), theirs, atol=1e-5, rtol=0)
    assert kind.save(tmp_path / "FINAL", model, {}) < 1e-5
    np.testing.assert_allclose(rankpo.load(tmp_path / "FINAL", "cpu").encode(texts), theirs, atol=1e-5, rtol=0)
    other = EmbeddingInputs(byte_tokenizer(), model.settings)
    assert other.pieces().fingerprint != model.inputs.pieces().fingerprint


@pytest.mark.parametrize(("limit", "expected"), [(1000000, 80), (30, 30)])
def test_a_plain_folder_has_the_limits_of_its_files(tmp_path, limit, expected):
    """They lower the yaml's lengths, and a length of the command line stays as it is."""
    backbone("bert").save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(tmp_path)
    assert rankpo.load(tmp_path, "cpu").settings.query_max_length == expected
    said = []
    settings = EmbeddingKind(name_or_path=str(tmp_path), passage_max_length=20).open_inputs(said.append).settings
    assert (settings.query_max_length, settings.passage_max_length, settings.pooling) == (expected, 20, "mean")
    assert any(f"was saved with query_max_length={expected}" in line for line in said)
    asked = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=512)
    assert asked.open_inputs(print, ["query_max_length"]).settings.query_max_length == 512


def test_windows_are_not_made_two_way(tmp_path):
    backbone("mistral").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    kind = EmbeddingKind(name_or_path=str(tmp_path), bidirectional=True, query_max_length=60, passage_max_length=60)
    with pytest.raises(
        LoadingError, match=r"MistralModel has sliding windows of 5 tokens, .* set model\.bidirectional=false"
    ):
        kind.build(kind.open_inputs(print), print)


def tensors_changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(n for n in t if "norm" in n.lower() and "1" in n)), "lacks the tensors .*[nN]orm"),
        (
            lambda t: t.update({n.replace("1", "7"): t[n].clone() for n in [*t] if ".1." in n}),
            "holds, which its config has no place for, the tensors .*7.*more",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tmp_path, family, change, message):
    backbone(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    kind = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=60, passage_max_length=60)
    kind.build(kind.open_inputs(print), print)
    tensors_changed(tmp_path, change)
    with pytest.raises(LoadingError, match=message):
        kind.build(kind.open_inputs(print), print)


def test_more_layers_than_weights(tmp_path):
    backbone("bert").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    kind = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=60, passage_max_length=60)
    with pytest.raises(LoadingError, match=r"lacks the tensors encoder\.layer\.2.* and 61 more"):
        kind.build(kind.open_inputs(print), print)


@pytest.mark.parametrize("name", ["weights.bin", "../outside.safetensors", "/tmp/x.safetensors", "a/b.safetensors"])
def test_an_index_names_safetensors_of_its_folder_alone(tmp_path, name):
    backbone("bert").save_pretrained(tmp_path, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tmp_path)
    kind = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=60, passage_max_length=60)
    kind.build(kind.open_inputs(print), print)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    path.write_text(json.dumps(index))
    with pytest.raises(LoadingError, match="only safetensors in the same folder are opened"):
        kind.open_inputs(print)


def test_a_damaged_final_is_refused(tmp_path):
    kind = EmbeddingKind(name_or_path=str(folder_of(tmp_path, "mean")))
    model = kind.build(kind.open_inputs(print), print)
    kind.save(tmp_path / "FINAL", model, {})
    rankpo.load(tmp_path / "FINAL", "cpu")
    tensors_changed(tmp_path / "FINAL", lambda t: next(iter(t.values())).add_(1))
    with pytest.raises(LoadingError, match=r"FINAL is damaged: model\.safetensors has another content"):
        rankpo.load(tmp_path / "FINAL", "cpu")


def test_a_head_that_is_not_used_is_named(tmp_path):
    from transformers import AutoModelForMaskedLM

    body = backbone("bert")
    AutoModelForMaskedLM.from_config(body.config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    said = []
    kind = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=60, passage_max_length=60)
    kind.build(kind.open_inputs(said.append), said.append)
    assert any("the head of the checkpoint is not used (cls.predictions" in line for line in said)


def test_adapters_alone_are_merged_into_their_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    (tmp_path / "base").mkdir()
    backbone("bert").save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    from transformers import AutoModel

    adapted = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    lengths = {"query_max_length": 60, "passage_max_length": 60}
    models = []
    for name in ("base", "adapter"):
        kind = EmbeddingKind(name_or_path=str(tmp_path / name), pooling="cls", **lengths)
        models.append(kind.build(kind.open_inputs(print), print).eval())
    ids = byte_tokenizer()(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        first = adapted.eval()(**ids).last_hidden_state[0, 0]
    np.testing.assert_allclose(models[1].encode(TEXTS[0]), first / first.norm(), atol=1e-5)
    assert np.abs(models[0].encode(TEXTS[0]) - models[1].encode(TEXTS[0])).max() > 1e-2
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(LoadingError, match="only adapters, and their base model cannot be loaded"):
        kind.build(models[1].inputs, print)


def test_the_encoder_of_an_encoder_decoder(tmp_path):
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "vocab_size": 260}
    config = AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    kind = EmbeddingKind(name_or_path=str(tmp_path / "plain"), query_max_length=60, passage_max_length=60)
    model = kind.build(kind.open_inputs(print), print).eval()
    assert model.settings.pooling == "mean" and not model.packed
    assert kind.save(tmp_path / "FINAL", model, {}) < 1e-5
    compare(model, tmp_path / "FINAL", "mean")
    compare(rankpo.load(tmp_path / "FINAL", "cpu"), tmp_path / "FINAL", "mean")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path):
    backbone("bert").save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tmp_path)
    kind = EmbeddingKind(name_or_path=str(tmp_path), query_max_length=60, passage_max_length=60)
    with pytest.raises(LoadingError, match="the tokenizer has 262 tokens, but the model has 260 embeddings"):
        kind.build(kind.open_inputs(print), print)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "max", "weighted_mean", "mean_sqrt_len", "cls+max"])
def test_an_empty_text_is_the_zero_vector(pooling, layout):
    """With a tokenizer that adds no special tokens, alone and beside others."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    settings = EmbeddingSettings(pooling=pooling, query_max_length=60, passage_max_length=60)
    model = EmbeddingModel(backbone("bert"), EmbeddingInputs(tokenizer, settings), layout=layout).eval()
    texts = ["soil", "", "rain", ""]
    found = model.encode(texts)
    assert not found[1].any() and not found[3].any()
    for text, vector in zip(texts[::2], found[::2], strict=True):
        np.testing.assert_allclose(model.encode(text), vector, atol=1e-6)
    assert not model.encode("").any() and not model.encode(["", ""]).any()
    assert np.isfinite(found).all()


def test_new_layers_and_two_way_attention_by_the_config(tmp_path):
    """A Dense layer on a random Llama that reads both ways: trained, saved and loaded again."""
    train(
        "loss=contrastive", "kind=embedding", "model=tiny_llama", "model.layers=[{type: Dense, out_features: 6}]",
        "model.bidirectional=true", "datasets=[toy_contrastive]", "trainer.max_steps=2", "trainer.batch_size=4",
        f"cache_dir={tmp_path}", "exp_name=a", f"run_dir={tmp_path}/run",
    )  # fmt: skip
    final = rankpo.load(tmp_path / "run" / "FINAL", "cpu")
    assert final.encode(TEXTS).shape == (5, 6) and final.settings.bidirectional
    compare(final, tmp_path / "run" / "FINAL", "mean")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[{type: Linear, out_features: 6}]", "type must be one of Dense, LayerNorm, Normalize, Dropout, got 'Linear'"),
        ("[{type: Dense, size: 6}]", "Dense has no 'size'"),
        ("[{type: Dense}]", "Dense needs out_features > 0"),
        ("[{type: Dense, out_features: 6, activation: Tan}]", "did you mean Tanh"),
    ],
)
def test_layers_that_do_not_exist(layers, message):
    with pytest.raises(ConfigError, match=message):
        train("loss=contrastive", "kind=embedding", "model=tiny_llama", f"model.layers={layers}")


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("llama", "last")])
def test_a_pooling_that_nobody_states_is_said_to_be_a_guess(tmp_path, family, pooling):
    backbone(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    said = []
    assert EmbeddingKind(name_or_path=str(tmp_path)).open_inputs(said.append).settings.pooling == pooling
    assert any(
        f"states no pooling, so {pooling} is used for its architecture; set model.pooling" in line for line in said
    )
    said.clear()
    EmbeddingKind(name_or_path=str(tmp_path), pooling="cls").open_inputs(said.append)
    assert not any("guess" in line for line in said)
