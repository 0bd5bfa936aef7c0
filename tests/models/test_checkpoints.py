"""Checkpoints of sentence-transformers as embedding models: the same vectors before training, after it, and as FINAL."""

import json
import shutil

import numpy as np
import pytest
import torch

import rankpo
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.loading import byte_tokenizer
from tests.models.families import backbone
from tests.runs import train

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


@pytest.mark.parametrize("case", CASES)
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
