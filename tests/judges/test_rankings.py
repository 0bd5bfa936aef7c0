"""Rankings that pairs are drawn from: a query that is a document is not compared with itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from rankpo.judges import rankings

TEXTS = {name: f"text {name}" for name in "abcd"}


def test_a_run_leaves_the_query_itself_out(tmp_path):
    (tmp_path / "run.trec").write_text("".join(f"a Q0 {name} 1 {9 - n} t\n" for n, name in enumerate("abcd")))
    found = rankings.of_run(str(tmp_path / "run.trec"), {"a": "text a"}, TEXTS, 2, print)
    assert found == {"a": (["b", "c"], [8.0, 7.0])}


def test_a_search_leaves_the_query_itself_out(tmp_path, monkeypatch):
    asked = []

    def make_search(model, depth, device, say):
        asked.append(depth)
        numbers = np.array([[0, 2, 1], [3, -1, -1]])
        hits = SimpleNamespace(numbers=numbers, scores=np.array([[3.0, 2.0, 1.0], [1.0, 0.0, 0.0]]))
        return SimpleNamespace(check_memory=lambda *_: None, hits=lambda *_: hits)

    monkeypatch.setattr(rankings, "make_search", make_search)
    monkeypatch.setattr(rankings, "cached_embeddings", lambda *_: None)
    model = SimpleNamespace(device="cpu", stored_dim=4)
    found = rankings.searched(model, {"a": "text a", "q": "text"}, TEXTS, 2, tmp_path, print)
    assert asked == [3]
    assert found == {"a": (["c", "b"], [2.0, 1.0]), "q": (["d"], [1.0])}
