"""task=serve as a user starts it: two models over their own indexes, and settings that are refused."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import rankpo
from rankpo.errors import ConfigError
from tests.runs import RANKPO, train


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def fetch(url: str, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_two_models_over_their_indexes(tmp_path):
    """The hits are those of numpy's products of each model's own vectors; the server ends by itself."""
    corpus = tmp_path / "corpus.jsonl"
    texts = {f"d{n}": text for n, text in enumerate(("a nurse in Basel", "a welder", "baker, Bern", "nurse and baker"))}
    corpus.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    models, indexes = [], []
    for seed in (1, 2):
        train(*RANKPO, "trainer.max_steps=1", f"exp_name=r{seed}", f"seed={seed}", f"cache_dir={tmp_path}")
        models.append(f"{tmp_path}/r{seed}/FINAL")
        options = ("model=tiny_bert", f"model.load_from={models[-1]}", f"task.corpus={corpus}", f"cache_dir={tmp_path}")
        train("task=encode", *options, f"exp_name=i{seed}")
        indexes.append(f"{tmp_path}/i{seed}/embeddings")
    port = free_port()
    command = (
        "task=serve", f"task.runs=[{tmp_path}/r1,{tmp_path}/r2]", f"task.indexes=[{','.join(indexes)}]",
        f"task.models=[{','.join(models)}]", f"task.corpus={corpus}", f"task.port={port}", "task.minutes=0.1",
        "task.top_k=3", f"cache_dir={tmp_path}", "exp_name=served",
    )  # fmt: skip
    thread = threading.Thread(target=train, args=command, daemon=True)
    thread.start()
    assert "of 2 recipes" not in fetch(f"http://127.0.0.1:{port}/main") and "Compares r1/FINAL" in fetch(
        f"http://127.0.0.1:{port}/"
    )
    found = json.loads(fetch(f"http://127.0.0.1:{port}/search?q=nurse"))["models"]
    assert [model["name"] for model in found] == ["r1/FINAL", "r2/FINAL"]
    for path, model in zip(models, found, strict=True):
        loaded = rankpo.load(path)
        scores = loaded.encode(list(texts.values()), role="passage") @ loaded.encode("nurse", role="query")
        best = np.argsort(-scores, kind="stable")[:3]
        assert [hit["id"] for hit in model["hits"]] == [f"d{n}" for n in best]
        assert [hit["score"] for hit in model["hits"]] == pytest.approx(scores[best].tolist(), abs=1e-5)
        assert [hit["text"] for hit in model["hits"]] == [texts[f"d{n}"] for n in best]
    thread.join(timeout=30)
    assert not thread.is_alive(), "task.minutes ends it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task.indexes=[a]",), "models must name the folder that encoded each of indexes: got 0 for 1"),
        (("task.port=70000",), "port between 0 and 65535"),
        (("task.minutes=0",), "minutes must be > 0 or null, got 0"),
        (("task.seconds=0",), "seconds > 0"),
    ],
)
def test_settings_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train("task=serve", f"task.runs=[{tmp_path}]", f"cache_dir={tmp_path}", *options)


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"task\.port={port}: .*; choose another"):
            train(
                "task=serve", f"task.runs=[{tmp_path}]", f"task.port={port}", f"cache_dir={tmp_path}", "model=tiny_bert"
            )


def test_an_index_of_another_model_is_refused(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "d", "text": "a"}\n')
    for seed in (1, 2):
        train(*RANKPO, "trainer.max_steps=1", f"exp_name=r{seed}", f"seed={seed}", f"cache_dir={tmp_path}")
    options = (
        "model=tiny_bert",
        f"model.load_from={tmp_path}/r1/FINAL",
        f"task.corpus={corpus}",
        f"cache_dir={tmp_path}",
    )
    train("task=encode", *options, "exp_name=i")
    command = (
        f"task.runs=[{tmp_path}/r1]",
        f"task.indexes=[{tmp_path}/i/embeddings]",
        f"task.models=[{tmp_path}/r2/FINAL]",
    )
    with pytest.raises(ConfigError, match="was encoded by another model"):
        train("task=serve", *command, f"task.corpus={corpus}", "task.port=0", f"cache_dir={tmp_path}")
