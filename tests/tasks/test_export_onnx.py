"""task=export task.format=onnx: the file runs as torch does, and what its quantisation loses is measured."""

from __future__ import annotations

import numpy as np
import pytest

import rankpo
from rankpo.errors import ConfigError
from rankpo.storage.folders import damage
from tests.runs import CONTRASTIVE, train

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)


def test_onnx_beside_the_weights(tmp_path, capsys, monkeypatch):
    import onnxruntime

    train(*CONTRASTIVE, "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=a")
    data = (
        "eval_datasets=[jobs_test]",
        "eval_datasets.jobs_test.num_profiles=40",
        "eval_datasets.jobs_test.num_posts=6",
    )
    rows = {}
    for quantize in ("null", "int8"):
        keys = ("task.format=onnx", f"task.quantize={quantize}", f"exp_name=x-{quantize}", f"cache_dir={tmp_path}")
        monkeypatch.chdir(tmp_path)
        experiment = train("task=export", f"task.run={tmp_path}/a", *keys, *data)
        rows[quantize] = capsys.readouterr().out.splitlines()
        folder = experiment.run_dir / "FINAL"
        assert damage(folder) is None
    assert "jobs_test/ndcg@10 lost" in rows["int8"][0] + " ".join(rows["int8"])
    whole, small = (tmp_path / "x-null/FINAL/onnx/model.onnx", tmp_path / "x-int8/FINAL/onnx/model_qint8.onnx")
    assert whole.is_file() and small.is_file() and not small.with_name("model.onnx").exists()
    model = rankpo.load(tmp_path / "x-null" / "FINAL", "cpu")
    sequences = model.inputs.sequences_of(["a red cat", "stones"], "candidate")
    width = int(sequences.lengths.max())
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    start = 0
    for row, length in enumerate(sequences.lengths.tolist()):
        ids[row, :length], mask[row, :length] = sequences.input_ids[start : start + length].numpy(), 1
        start += length
    session = onnxruntime.InferenceSession(str(whole), providers=["CPUExecutionProvider"])
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)  # mean pooling by hand
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, model.encode(["a red cat", "stones"]), atol=1e-5)


def test_what_has_no_onnx(tmp_path):
    with pytest.raises(ConfigError, match="exports models that give vectors, and this one is of kind reranker"):
        train(
            "task=export", "model=tiny_bert", "kind=reranker", "task.format=onnx", f"cache_dir={tmp_path}", "exp_name=x"
        )
    with pytest.raises(ConfigError, match="quantize=int8 needs format=onnx"):
        train("task=export", "model=tiny_bert", "task.quantize=int8", f"cache_dir={tmp_path}")
