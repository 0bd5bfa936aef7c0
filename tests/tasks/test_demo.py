"""The demo with a tiny model and two updates a stage: every command of it runs, and its table adds up."""

from __future__ import annotations

import json

import pytest

from rankpo.tasks import demo


def test_summary_by_hand():
    row = {"jobs_test/ndcg@20": 0.5, "jobs_test/recall@100": 0.8, "jobs_preferences_test/accuracy": 0.6}
    better = [{**row, "jobs_test/ndcg@20": value} for value in (0.4, 0.5)]
    first, second = demo.summary({"stage one": [row], "aligned": better})
    assert first[demo.RULES] == "0.5000"
    assert second[demo.RULES] == "0.4500 ± 0.0707"  # |.5 - .4| / √2
    assert second[demo.KEPT] == "90.0 %"


def test_demo_from_training_to_report(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SEEDS", (1, 2))
    small = [item.replace("profiles=500", "profiles=80").replace("posts=60", "posts=12") for item in demo.EVALUATION]
    assert small != list(demo.EVALUATION)
    monkeypatch.setattr(demo, "EVALUATION", tuple(small))
    demo.main(["model=tiny_bert", f"cache_dir={tmp_path}", "trainer.max_steps=2", "trainer.batch_size=4"])
    found = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert {title: len(rows) for title, rows in found.items()} == {
        "base": 1, "first round": 1, "stage one": 1, "RankPO alone": 2, "RankPO, stage one replayed": 2, "RankPO replayed, 70 % of its way": 2,
    }  # fmt: skip
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "jobs_aligned_2" in page
    assert "Alignment against retention" in page
    assert len((tmp_path / "demo" / "table.txt").read_text().splitlines()) >= 5
    alone, replayed = found["RankPO alone"][0], found["RankPO, stage one replayed"][0]
    assert alone["jobs_test/ndcg@20"] != pytest.approx(replayed["jobs_test/ndcg@20"], abs=1e-12)
