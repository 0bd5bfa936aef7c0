"""task=export task.format=onnx and openvino: the file computes what torch does, and what its quantisation loses is measured."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.exported.forms import HiddenStates, LastTokenScores, Scores, form_of, plain, run_by
from rankpo.models.exported.onnx import onnx_runner, write_onnx
from rankpo.storage.folders import damage
from tests.runs import CONTRASTIVE, train

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

DATA = ("eval_datasets=jobs_test", "eval_datasets.jobs_test.num_profiles=40", "eval_datasets.jobs_test.num_posts=6")
RERANKER = ("model=tiny_bert", "loss=softmax", "model.random.num_hidden_layers=1", "datasets=toy_contrastive")
TEXTS = ["a red cat", "stones and a bridge over them"]
YES_NO = (
    *(
        "model=tiny_llama",
        "kind=reranker",
        "loss=softmax",
        "model.random.num_hidden_layers=1",
        "datasets=toy_contrastive",
    ),
    *("model.head=causal_lm", "model.suffix='\nrelevant:'", "model.yes_word=y", "model.no_word=n"),
)
RECIPES = {
    "embedding": CONTRASTIVE,
    "sparse": (*CONTRASTIVE, "kind=sparse"),
    "reranker": RERANKER,
    "decoder": ("model=tiny_llama", *RERANKER[1:], "kind=reranker"),
    "yes_no": YES_NO,
}
SLOW = pytest.mark.slow


def export(folder, capsys, kind, file_format, quantize):
    """The folder FINAL of an export of a run, and the values of the printed table."""
    train(*RECIPES[kind], "trainer.max_steps=1", f"cache_dir={folder}", "exp_name=a")
    keys = (f"task.format={file_format}", f"task.quantize={quantize}", "exp_name=x", f"cache_dir={folder}")
    capsys.readouterr()
    (row,) = train_export("task=export", f"task.run={folder}/a", *keys, *DATA)
    assert damage(folder / "x" / "FINAL") is None
    return folder / "x" / "FINAL", row


def train_export(*overrides):
    """The rows of the export."""
    from rankpo.config.compose import compose
    from tests.runs import reset

    reset()
    experiment = compose(overrides)
    return experiment.task(experiment)


def padded(model, sequences):
    """ids and mask [n, T] of sequences, by hand."""
    width = int(sequences.lengths.max())
    ids, mask = (np.zeros((len(sequences), width), np.int64) for _ in range(2))
    start = 0
    for row, length in enumerate(sequences.lengths.tolist()):
        ids[row, :length], mask[row, :length] = sequences.input_ids[start : start + length].numpy(), 1
        start += length
    return ids, mask


def output_of(path, arrays):
    """What the runtime itself computes."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert {item.name for item in session.get_inputs()} == set(arrays)
        return session.run(None, arrays)[0]
    import openvino

    return np.array(openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(arrays)[0])


def results(model, kind, path):
    """The results of the file, pooled by hand, and those of the model."""
    if kind in ("reranker", "decoder", "yes_no"):
        pairs = [("a red cat", "stones"), ("b", "a bridge over them and more")]
        sequences = model.inputs.sequences_of(pairs)
        ids, mask = padded(model, sequences)
        arrays = {"input_ids": ids, "attention_mask": mask}
        return output_of(path, arrays)[:, 0], np.array(model.compute_score(pairs, normalize=False))
    ids, mask = padded(model, model.inputs.sequences_of(TEXTS, "candidate"))
    output = output_of(path, {"input_ids": ids, "attention_mask": mask})
    if kind == "sparse":
        return (np.log1p(np.maximum(output, 0)) * mask[:, :, None]).max(1), model.encode(TEXTS).toarray()
    pooled = (output * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True), model.encode(TEXTS)


NAMES = {
    ("onnx", "null"): "model.onnx",
    ("onnx", "int8"): "model_qint8.onnx",
    ("onnx", "fp16"): "model_fp16.onnx",
    ("openvino", "null"): "openvino_model.xml",
    ("openvino", "int8"): "openvino_model_qint8.xml",
    ("openvino", "fp16"): "openvino_model_fp16.xml",
}
TOLERANCES = {"null": 1e-4, "fp16": 1e-2, "int8": 0.2}
DEFAULT = (("embedding", "onnx", "int8"),)
ALL = [(kind, *form) for kind in RECIPES for form in NAMES]


@pytest.mark.parametrize(
    ("kind", "file_format", "quantize"),
    [item if item in DEFAULT else pytest.param(*item, marks=SLOW) for item in ALL],
)
def test_the_file_computes_what_torch_does(tmp_path, capsys, kind, file_format, quantize):
    pytest.importorskip(file_format)
    if (file_format, quantize) == ("openvino", "int8"):
        pytest.importorskip("nncf")
    folder, row = export(tmp_path, capsys, kind, file_format, quantize)
    path = folder / file_format / NAMES[file_format, quantize]
    files = sorted(item.name for item in path.parent.iterdir())
    assert files == ([path.with_suffix(".bin").name, path.name] if file_format == "openvino" else [path.name])
    model = rankpo.load(folder, "cpu")
    found, expected = results(model, kind, path)
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[quantize])
    if quantize == "int8":
        assert float(row["file difference"]) > 1e-5  # it was the file that was compared
    assert row["jobs_test/ndcg@10 lost"] == pytest.approx(0, abs=0.2) and row["MB"] > 0
    card = (folder / "README.md").read_text()
    assert f"## {file_format}/{path.name}" in card and re.search(r"\| jobs_test/ndcg@10 lost \| -?0\.\d+ \|", card)
    assert f"{file_format}/{path.name}" in json.dumps(list(json.loads((folder / "manifest.json").read_text())))


def test_the_model_is_its_own_again_behind_a_comparison(tmp_path):
    """The methods and settings that a comparison replaces come back, also after an error."""
    from tests.models.test_prior import model_of

    model = model_of(prior_layers=[])
    before = model.encode(TEXTS)
    packed = model.packed

    def fails(arrays):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), run_by(model, HiddenStates(), fails, "file"):
        model.encode(TEXTS)
    assert (model.packed, model.precision) == (packed, "fp32")
    np.testing.assert_array_equal(model.encode(TEXTS), before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("kind=causal_lm", "model=tiny_pythia"), "exports models with vectors and rerankers, and kind=causal_lm"),
        (("task.quantize=int4",), r"quantize must be one of int8, fp16 or null, got 'int4'"),
        (("task.format=folder", "task.quantize=int8"), "quantize=int8 needs format=onnx or openvino"),
        (("task.format=tflite",), "format must be one of folder, onnx, openvino, got 'tflite'"),
    ],
)
def test_what_has_no_file(tmp_path, overrides, message):
    keys = ("model=tiny_bert", "task.format=onnx", f"cache_dir={tmp_path}", "exp_name=x")
    with pytest.raises(ConfigError, match=message):
        train("task=export", *keys, *overrides)


def test_models_whose_file_would_compute_something_else():
    from tests.models.test_prior import model_of

    with pytest.raises(ConfigError, match="exports the last hidden states, and this model reads those of other layers"):
        HiddenStates().exported(model_of(prior_layers=[1]))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    keys = ("task=export", "model=tiny_bert", "task.format=openvino", f"cache_dir={tmp_path}", "exp_name=x")
    monkeypatch.setattr("rankpo.models.exported.openvino.find_spec", lambda name: None)
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match="needs the package nncf: pip install nncf; or set fp16"):
        train(*keys, "task.quantize=int8")
    monkeypatch.setattr("rankpo.tasks.work.export_file.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package openvino: pip install 'rankpo\[openvino\]'"):
        train(*keys)


def padded_on_the_left(ids, mask):
    """The same sequences, each moved to the right end."""
    moved = [np.roll(row, len(row) - kept, axis=0) for row, kept in zip(ids, mask.sum(1), strict=True)]
    return np.stack(moved), np.sort(mask, axis=1)


@pytest.mark.parametrize(
    ("family", "head"),
    [("qwen2", "causal_lm")]
    + [
        pytest.param(family, head, marks=SLOW)
        for family in ("llama", "qwen3", "mistral", "gemma3_text", "gpt_neox", "gpt2")
        for head in ("causal_lm", "decoder")
    ],
)
def test_decoders_score_alike_padded_on_either_side(tmp_path, family, head):
    """Sliding windows, soft caps, learned and rotary positions; some layers pad with a token that texts have too."""
    from tests.models.test_reranker import PAIRS, tiny
    from tests.tokenizers import qwen

    model = tiny(family, qwen(), head, suffix="\nrelevant:\n")
    form = form_of(model)
    with plain(model):
        path = write_onnx(form.exported(model), tmp_path, None)
    ids, mask = padded(model, model.inputs.sequences_of(PAIRS))
    expected = np.array(model.compute_score(PAIRS, normalize=False))
    assert expected.std() > 1e-2
    for sides in ((ids, mask), padded_on_the_left(ids, mask)):
        found = output_of(path, dict(zip(("input_ids", "attention_mask"), sides, strict=True)))
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


@SLOW
@pytest.mark.parametrize("one_label", [False, True])
def test_the_reader_of_a_file_is_named(tmp_path, capsys, one_label):
    """The folder of a language model is read by the logits of all tokens, one with one label by its score."""
    keys = (f"model.export_one_label={one_label}", f"cache_dir={tmp_path}", "exp_name=a", "trainer.max_steps=1")
    train(*YES_NO, *keys)
    form = LastTokenScores()
    assert form.read_in(tmp_path / "a" / "FINAL") == one_label


@SLOW
def test_token_types_are_an_input(tmp_path):
    from tests.models.test_reranker import bert, tiny

    model = tiny("bert", bert())
    model.base.base_model.embeddings.token_type_embeddings.weight.data.normal_()
    form = Scores()
    exported = form.exported(model)
    assert exported.inputs == ("input_ids", "attention_mask", "token_type_ids")
    with plain(model):
        path = write_onnx(exported, tmp_path, None)
    expected = form.outputs(model)
    with run_by(model, form, onnx_runner(path), "file"):
        np.testing.assert_allclose(form.outputs(model), expected, atol=1e-4)
