"""FINAL in a server that people run: infinity on loopback gives our embeddings and our scores.

It runs in an environment of its own (`pip install 'infinity-emb[server,torch]'`); INFINITY_EMB names its program where
it is not on the path. Without it these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch

import rankpo
from rankpo.config.compose import compose
from tests.models.saved import saved
from tests.models.test_reranker import model_of as reranker_of

PROGRAM = os.environ.get("INFINITY_EMB") or shutil.which("infinity_emb")
START_SECONDS = 120
TEXTS = ["what do moles eat?", "Moles eat earthworms, which they keep alive.", "b", "stones and " * 12 + "sand"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="infinity_emb is not installed; INFINITY_EMB may name its program"),
]


@contextmanager
def infinity(folder, log):
    """The address of a server of this folder alone, on loopback; it is ended behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model-id", str(folder), "--engine", "torch", "--device", "cpu", "--port", str(port)]
    # scores to compare: full precision, no compilation, and nothing sent or stored
    options += ["--host", "127.0.0.1", "--dtype", "float32", "--no-bettertransformer", "--no-compile"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        server = subprocess.Popen([PROGRAM, "v2", *options], env=environment, stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        wait(address, server, log)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait(address, server, log):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"infinity did not start:\n{log.read_text()[-3000:]}")


def post(address, path, **content):
    answer = httpx.post(f"{address}/{path}", json=content, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_ours(tmp_path, pooling):
    config = compose(["model=tiny_bert", f"model.pooling={pooling}", "loss=contrastive"]).model
    torch.manual_seed(1)
    model = config.build(config.open_inputs(lambda message: None), lambda message: None).eval()
    saved(model, tmp_path / "FINAL", {})
    with infinity(tmp_path / "FINAL", tmp_path / "log") as address:
        found = post(address, "embeddings", model=str(tmp_path / "FINAL"), input=TEXTS)["data"]
    theirs = np.array([item["embedding"] for item in sorted(found, key=lambda item: item["index"])])
    ours = rankpo.load(tmp_path / "FINAL", "cpu").encode(TEXTS)
    assert np.abs(theirs - ours).max() < 1e-4
    assert np.abs(ours[0] - ours[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_reranker_scores_are_ours(tmp_path, name):
    """Formats stay with the caller, as FINAL/README.md says."""
    model = reranker_of(name)
    saved(model, tmp_path / "FINAL", {})
    heads = model.inputs.layout.query_prefix, model.inputs.layout.document_prefix
    query, *documents = TEXTS
    request = {"query": heads[0] + query, "documents": [heads[1] + text for text in documents], "raw_scores": True}
    with infinity(tmp_path / "FINAL", tmp_path / "log") as address:
        found = post(address, "rerank", model=str(tmp_path / "FINAL"), **request)["results"]
    theirs = {item["index"]: item["relevance_score"] for item in found}
    ours = rankpo.load(tmp_path / "FINAL", "cpu").compute_score([(query, text) for text in documents])
    assert [theirs[place] for place in range(len(documents))] == pytest.approx(ours, abs=1e-4)
    assert max(ours) - min(ours) > 1e-2
