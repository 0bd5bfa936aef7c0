"""The report: what it reads, what it says, and that it stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rankpo.errors import ConfigError
from rankpo.report.runs import open_runs, short_names
from tests.runs import train

SHARES = {
    "orders_agree": "both orders agree",
    "first_shown_preferred": "the passage shown first is preferred",
    "agrees_with_ranking": "agrees with the ranking",
}


def write_evaluation(folder: Path, model: str, dataset: str, values: dict[str, dict[str, float]]) -> None:
    target = folder / "evaluation" / model / dataset
    target.mkdir(parents=True)
    lines = [json.dumps({"query": query, **record}) for query, record in values.items()]
    (target / "per_query.jsonl").write_text("\n".join(lines) + "\n")
    (target / "metrics.json").write_text(json.dumps({"metrics": {}}))


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two runs: the second wins nothing in retrieval on 3 of 4 queries and gains in agreement."""
    folders = []
    for name, ndcg, chosen in (("first", 0.8, 0.0), ("second", 0.6, 1.0)):
        folder = tmp_path / name
        folder.mkdir()
        steps = [
            {"step": 0, "time": 1.0, "eval/dev/ndcg@20": 0.5},
            {"step": 2, "time": 2.0, "train/loss": 0.75, "train/grad_norm": 1.0},
            {"step": 4, "time": 3.0, "train/loss": 0.25, "train/grad_norm": 2.0, "eval/dev/ndcg@20": ndcg},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        (folder / "config.json").write_text(json.dumps({"loss": {"beta": len(name)}, "seed": 1}))
        write_evaluation(folder, "FINAL", "dev", {f"q{n}": {"ndcg@20": ndcg if n else 0.9} for n in range(4)})
        pairs = {f"q{n}/{m}": {"accuracy": chosen, "group": n} for n in range(4) for m in range(2)}
        write_evaluation(folder, "FINAL", "pairs", pairs)
        folders.append(folder)
    return folders


def page_of(runs: list[Path], tmp_path: Path, *more: str) -> str:
    listed = ",".join(f'"{run}"' for run in runs)
    train("task=report", f"task.runs=[{listed}]", "model=tiny_bert", f"cache_dir={tmp_path}", "exp_name=report", *more)
    return (tmp_path / "report" / "report.html").read_text()


class Checker(HTMLParser):
    """Open elements must be closed in order; nothing may be fetched."""

    empty = ("meta", "br", "input", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset") and value]
        if tag not in self.empty and self.open[-1:] != ["script"]:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_fetches_nothing(runs, tmp_path):
    page = page_of(runs, tmp_path)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(target.startswith("#") for target in checker.fetched)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)


def test_comparison_says_difference_test_and_frontier(runs, tmp_path):
    page = " ".join(page_of(runs, tmp_path).split())
    assert "-0.1500" in page  # three of four queries lost .2
    assert "0/1/3" in page
    assert "p 0.25," in page  # agreement and nDCG: 2/2^3 and 2/2^4, Holm: max(.25, 2 · .125) for both
    assert "80.0 %" not in page and "81.8 %" in page  # (.9 + 3 · .6) / (.9 + 3 · .8) of stage one is kept
    runs_section = page.split('<section id="runs">')[1]
    assert "<code>loss.beta=5</code>" in runs_section and "seed=1" not in runs_section


def test_one_run_shows_before_and_after(runs, tmp_path):
    page = " ".join(page_of(runs[:1], tmp_path).split())
    assert "+0.3000" in page
    assert page.count('<svg class="chart"') == 3  # loss, gradient norm, the evaluation's metric


def test_a_baseline_that_is_not_there_is_named(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"third is not among the evaluated models: first, second"):
        page_of(runs, tmp_path, "task.baseline=third")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no metrics"):
        open_runs([str(tmp_path)])


def test_texts_cannot_break_the_page(runs, tmp_path):
    config = runs[0] / "config.json"
    config.write_text(json.dumps({"loss": "<script>alert(1)</script>", "seed": 1}))
    hostile = tmp_path / "<img src=x onerror=alert(2)>"
    runs[1].rename(hostile)
    page = page_of([runs[0], hostile], tmp_path)
    assert "<script>alert" not in page and "<img" not in page


def test_names_are_as_short_as_they_can_be():
    assert short_names([Path("/a/x/1"), Path("/a/y/1")]) == ["x/1", "y/1"]
    assert short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_what_was_mined_and_judged_is_in_the_page(runs, tmp_path):
    """Histograms, the hardest negatives and a judge's shares, as the two tasks write them; configs are the runs' alone."""
    data = ("datasets=[jobs]", "datasets.jobs.num_profiles=60", "datasets.jobs.num_posts=5", f"cache_dir={tmp_path}")
    judge = ("judge=rules", "judge.num_profiles=60", "judge.num_posts=5")
    train("task=mine", "mining=dense", "model=tiny_bert", *data, "exp_name=mined")
    train("task=annotate", "model=tiny_bert", *judge, *data, "exp_name=judged")
    page = " ".join(page_of([*runs, tmp_path / "mined", tmp_path / "judged"], tmp_path).split())
    statistics = json.loads((tmp_path / "mined" / "statistics.json").read_text())["files"]["mined.jsonl"]
    hardest = statistics["hardest"][0]
    section = page.split("Hard negatives: mined/mined.jsonl")[1].split("<h3>")[0]
    assert f"{statistics['gap']['p50']:.4f}" in section and f"<dd>{statistics['kept']}</dd>" in section
    assert "score" in section and section.count("<polyline") == 2, "positives and negatives"
    assert " ".join(hardest["negative"].split())[:60] in section
    judged = page.split("Preferences of a judge: judged")[1].split("<h2>")[0]
    report = json.loads((tmp_path / "judged" / "annotate" / "report.json").read_text())
    assert (
        f'<p class="faint">{report["pairs"]} pairs, 0 without a verdict; {2 * report["pairs"]} answered calls' in judged
    )
    for name, shown in SHARES.items():
        assert f"<td>{shown}</td><td>{report[name]['share']:.4f}</td>" in judged


def test_a_sweep_has_its_table(tmp_path):
    """Two seeds of β 1 (0.2 and 0.4: their distance over √2 is 0.1414), β 2 with 0.9 is first, β 3 was pruned."""
    folder = tmp_path / "sweep"
    for beta, seed, value, state in (
        (1, 1, 0.2, "finished"),
        (1, 2, 0.4, "finished"),
        (2, 1, 0.9, "finished"),
        (3, 1, 0.1, "pruned"),
    ):
        job = folder / f"loss.beta={beta},seed={seed}"
        job.mkdir(parents=True)
        overrides = [f"loss.beta={beta}", f"seed={seed}"]
        (job / "sweep_job.json").write_text(json.dumps({"overrides": overrides, "config": "", "state": state}))
        (job / "metrics.jsonl").write_text(json.dumps({"step": 1, "eval/dev/ndcg@20": value}) + "\n")
    note = {"arguments": [], "metrics": ["ndcg@20"], "directions": ["maximize"]}
    (folder / "sweep.json").write_text(json.dumps(note))
    page = page_of([folder], tmp_path)
    found = re.search(r"<h2>Sweep: .*?</table>", page, flags=re.DOTALL)
    assert found is not None
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>.*?</tr>", found[0], flags=re.DOTALL)
    ]
    assert rows == [
        ["loss.beta", "seeds", "dev/ndcg@20", "±", "state", "seed"],
        ["2", "1", "0.9000", "", "", ""],
        ["1", "2", "0.3000", "0.1414", "", ""],
        ["3", "0", "", "", "pruned", "1"],
    ]
