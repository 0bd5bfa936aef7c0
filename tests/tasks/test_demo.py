"""The demo with a tiny model and two updates a stage: every command of it runs, and its table adds up."""

from __future__ import annotations

import json
import re

import pytest

from rankpo.tasks import demo


def test_summary_by_hand():
    row = {"jobs_test/ndcg@20": 0.5, "jobs_test/recall@100": 0.8, "jobs_preferences_test/accuracy": 0.6}
    better = [{**row, "jobs_test/ndcg@20": value} for value in (0.4, 0.5)]
    first, second = demo.summary({"stage one": [row], "RankPO alone": better})
    assert first[demo.RULES] == "0.5000"
    assert second[demo.RULES] == "0.4500 ± 0.0707"  # |.5 - .4| / √2
    assert second[demo.KEPT] == "90.0 %"
    assert second["given"] == "binary labels, 1,800 judged pairs"


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_demo_from_training_to_report(tmp_path, monkeypatch, full):
    monkeypatch.setattr(demo, "SEEDS", (1, 2))
    for name in ("EVALUATION", "CHOICE"):
        usual = getattr(demo, name)
        small = [item.replace("profiles=500", "profiles=80").replace("posts=60", "posts=12") for item in usual]
        assert small != list(usual)
        monkeypatch.setattr(demo, name, tuple(small))
    few = [key.replace(str(demo.CANDIDATES), "10") for key in demo.GRADED_RULES]
    monkeypatch.setattr(demo, "GRADED_RULES", tuple(few))
    shallow = [key.replace("[2,3,4,5,6]", "[0,1]").replace("384", "64") for key in demo.HEAD]
    monkeypatch.setattr(demo, "HEAD", tuple(shallow))
    monkeypatch.setattr(demo, "PRIOR", "model.prior_layers=[1]")
    asked = [demo.FULL] if full else []
    demo.main([*asked, "model=tiny_bert", f"cache_dir={tmp_path}", "trainer.max_steps=2", "trainer.batch_size=4"])
    found = json.loads((tmp_path / "demo" / "results.json").read_text())
    runs = 2 if full else 1
    assert {title: len(rows) for title, rows in found.items()} == {
        "base": 1, "stage one": 1, "RankPO alone": runs, "prior and head": runs, "head": runs, "head (graded)": runs,
        "prior and head (graded)": runs, "oracle": 1,
    }  # fmt: skip
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "jobs_alone_1" in page
    assert "Alignment against retention" in page and "Searched frontier" in page
    assert len((tmp_path / "demo" / "table.txt").read_text().splitlines()) >= 7
    alone, stage_one = found["RankPO alone"][0], found["stage one"][0]
    assert alone["jobs_test/ndcg@20"] != pytest.approx(stage_one["jobs_test/ndcg@20"], abs=1e-12)
    assert all("/FINAL" not in title for title in found)


def test_every_step_says_what_it_takes(tmp_path, monkeypatch):
    steps = demo.Demo([f"cache_dir={tmp_path}"], (1,))
    monkeypatch.setattr(demo, "compose", lambda overrides: _Done(overrides))
    monkeypatch.setattr(steps.logger, "say", lambda line: said.append(line))
    said: list[str] = []
    steps.binary()
    steps.further()
    assert len(said) == 10
    assert all(re.match(r"\n[A-Z].* \(about \d+ s; \d+ s so far\)\n  python launch.py ", line) for line in said)


class _Done:
    """An experiment whose task does nothing."""

    def __init__(self, overrides):
        self.overrides = overrides

    def task(self, experiment):
        return [{}]
