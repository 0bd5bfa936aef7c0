"""What a run says: means by hand, files of the trackers, lines of the console."""

import io
import json
import shutil

import pytest
import torch

from rankpo.runs.logger import MetricsLogger, counting
from rankpo.runs.running import RunningMetrics
from tests.runs import RANKPO, curve, launch, train


def same(tensor):
    return tensor


def test_means_weigh_every_example_alike():
    """Micro-batches of 3 and 1: (1 + 2 + 3 + 8) / 4 = 3.5, not the mean of means 5."""
    running = RunningMetrics()
    running.add("margins", torch.tensor([1.0, 2, 3]))
    running.add("margins", torch.tensor([8.0]))
    assert running.result(same) == {"margins": 3.5}


def test_shares_are_summed_within_an_update_and_averaged_over_updates():
    """Updates of .25 + .5 and 1: (.75 + 1) / 2."""
    running = RunningMetrics()
    for shares in ((0.25, 0.5), (1.0,)):
        for share in shares:
            running.add_sum("loss", torch.tensor(share))
        running.end_update()
    assert running.result(same) == {"loss": 0.875}


def test_two_ranks_by_hand():
    """Rank 0 has margins 1, 2, 3 and .25 of the loss, rank 1 margin 8 and .75: as one process with all of it."""
    ranks = [RunningMetrics(), RunningMetrics()]
    for running, values, share in zip(ranks, ([1.0, 2, 3], [8.0]), (0.25, 0.75), strict=True):
        running.add("margins", torch.tensor(values))
        running.add("none_here", torch.tensor(values)[:0])
        running.add_sum("loss", torch.tensor(share))
        running.end_update()
    sent = []
    ranks[0].result(lambda tensor: sent.append(tensor.clone()) or tensor)
    assert ranks[1].result(lambda tensor: tensor + sent[0]) == {"margins": 3.5, "loss": 1.0}


def test_half_a_log_line_is_carried_on():
    """Saved after one update as JSON and restored on two ranks, of which one carries the sums."""
    first = RunningMetrics()
    first.add("margins", torch.tensor([0.1, 0.2]))
    first.add_sum("loss", torch.tensor(0.3, dtype=torch.float64))
    first.end_update()
    saved = json.loads(json.dumps(first.state(same)))
    ranks = [RunningMetrics(), RunningMetrics()]
    for running, share in zip(ranks, (1.0, 0.0), strict=True):
        running.restore(saved, share)
        running.add("margins", torch.tensor([0.6]) if share else torch.tensor([0.7]))
        running.add_sum("loss", torch.tensor(0.2 if share else 0.1, dtype=torch.float64))
        running.end_update()
    sent = []
    ranks[0].result(lambda tensor: sent.append(tensor.clone()) or tensor)
    whole = ranks[1].result(lambda tensor: tensor + sent[0])
    assert whole == pytest.approx({"margins": (0.1 + 0.2 + 0.6 + 0.7) / 4, "loss": (0.3 + 0.3) / 2})


def test_two_processes_log_what_one_does(tmp_path):
    train(*RANKPO, "trainer.log_every=3", "exp_name=one", f"cache_dir={tmp_path}")
    options = ("trainer.log_every=3", "trainer.max_tokens=300", "exp_name=two", f"cache_dir={tmp_path}")
    done = launch(*RANKPO, *options, processes=2)
    assert done.returncode == 0, done.stderr
    for name in (
        "train/loss",
        "train/scores/margins",
        "train/scores/chosen",
        "train/grad_norm",
        "train/rewards/accuracies",
    ):
        one = curve(tmp_path / "one", name)
        assert curve(tmp_path / "two", name) == pytest.approx(one, rel=1e-4, abs=1e-6), name
        assert len(one) == 2


def test_lines_after_the_step_are_taken_back(tmp_path):
    logger = MetricsLogger(tmp_path, stream=io.StringIO())
    for step in (1, 2, 3):
        logger.log("train", step, {"loss": float(step)})
    with logger.path.open("a") as file:
        file.write('{"step": 4, "tr')
    logger.start(9, 2)
    assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [1, 2]
    logger.start(9, 0, afresh=True)
    assert logger.path.read_text() == ""


@pytest.mark.parametrize(
    ("steps", "first_step", "missing"),
    [
        ((1, 2, 3), 3, None),
        ((10, 20), 25, None),  # the next line would come at 30
        ((100, 200), 250, None),  # the lines were 100 updates apart
        ((), 3, "updates 1 to 3 are missing"),
        ((1, 2), 5, "updates 3 to 5 are missing"),
        ((), 0, None),
    ],
)
def test_lines_that_are_gone_are_said(tmp_path, steps, first_step, missing):
    stream = io.StringIO()
    logger = MetricsLogger(tmp_path, stream=io.StringIO())
    for step in steps:
        logger.log("train", step, {"loss": 1.0})
    logger.stream = stream
    logger.start(300, first_step, every=10 if first_step > 20 else 1)
    assert (stream.getvalue() == "") if missing is None else (missing in stream.getvalue())


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    logger = MetricsLogger(tmp_path, stream=io.StringIO())
    logger.log("train", 1, {"loss": float("nan"), "ok": 1.0})
    (row,) = (json.loads(line) for line in logger.path.read_text().splitlines())
    assert row["train/loss"] is None and row["train/ok"] == 1.0


def test_console_lines():
    stream = io.StringIO()
    logger = MetricsLogger(stream=stream)
    logger.start(10, 0)
    logger.tick(1, 500, 0.5)
    logger.log("train", 1, {"loss": 0.69314, "other": 3.0})
    logger.log("eval", 1, {"jobs/ndcg@20": 0.5})
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 1/10 · loss 0.6931 · 1,000 tokens/s · ETA ") and "other" not in first
    assert second == "eval at step 1 · jobs/ndcg@20 0.5"


def test_other_ranks_are_silent(tmp_path):
    stream = io.StringIO()
    logger = MetricsLogger(tmp_path, main=False, stream=stream, tracker={"backends": {"tensorboard": True}})
    logger.say("x")
    logger.log("train", 1, {"loss": 1.0})
    assert stream.getvalue() == "" and not list(tmp_path.iterdir())


def test_tables_align(capsys):
    MetricsLogger().table([{"model": "base", "mrr": 0.5}, {"model": "b", "extra": 1}], "title")
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "model  mrr     extra",
        "base   0.5000",
        "b              1",
    ]


def test_counting_is_none_where_it_is_not_shown():
    with counting("encode", 3, shown=False) as advance:
        assert advance is None


def test_tensorboard_holds_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(*RANKPO, "tracker=tensorboard", "exp_name=run", f"cache_dir={tmp_path}")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in scalars] == pytest.approx(curve(tmp_path / "run"), rel=1e-6)


def test_a_run_that_starts_again_has_a_curve_of_its_own(tmp_path):
    """A resumed one keeps its curve, and what was written after the checkpoint is written again, once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rankpo.runs.trackers import identity

    def steps() -> list[int]:
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        return [event.step for event in events.Scalars("train/loss")]

    options = (*RANKPO, "tracker=tensorboard", "trainer.save_every=2", "exp_name=run", f"cache_dir={tmp_path}")
    train(*options)
    name = identity(tmp_path / "run")
    for gone in ("FINAL", "checkpoints/step-6"):
        shutil.rmtree(tmp_path / "run" / gone)
    train(*options, "resume=auto")
    assert steps() == [1, 2, 3, 4, 5, 6] and identity(tmp_path / "run") == name
    train(*options, "overwrite=true", "trainer.max_steps=3")
    assert steps() == [1, 2, 3] and identity(tmp_path / "run") != name


def test_what_cannot_begin_costs_nothing(tmp_path):
    """overwrite=true with a record that cannot be read: the finished run stays."""
    options = (*RANKPO, "trainer.max_steps=1", "exp_name=run", f"cache_dir={tmp_path}")
    train(*options)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    bad = ("datasets=[jsonl]", f"datasets.jsonl.path={tmp_path}/bad.jsonl", "overwrite=true")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        train(*[option for option in options if option != "datasets=[toy_pairs]"], *bad)
    assert (tmp_path / "run" / "FINAL").exists()
    assert "toy_pairs" in (tmp_path / "run" / "config.json").read_text()


def test_wandb_offline_writes_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # whatever asks the network is refused
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_ThisIsASecretThatNobodyMaySee123")
    train(*RANKPO, "tracker=wandb", "tracker.mode=offline", "exp_name=run", f"cache_dir={tmp_path}")
    wandb.teardown()  # as at the end of a process: until then the records are on their way to the file
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"train/loss" in content and b"batch_size" in content
    written = [path.read_bytes() for path in (tmp_path / "run" / "wandb").rglob("*") if path.is_file()]
    assert not any(b"NobodyMaySee" in content for content in written)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_live_line(tmp_path, monkeypatch):
    """Bar, update, loss, rate, memory; notices and evaluations stand above it, log lines do not; metrics.jsonl is the same."""
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    logger = MetricsLogger(tmp_path, stream=stream)
    logger.start(10, 0)
    logger.tick(1, 500, 0.5)
    logger.log("train", 1, {"loss": 0.69314})
    logger.say("a notice [bold]")
    logger.tick(2, 500, 0.5)
    logger.log("eval", 2, {"jobs/ndcg@20": 0.5})
    logger.finish()
    text = stream.getvalue()
    assert "2/10" in text and "loss 0.6931" in text and "1,000 tokens/s" in text and "GiB" in text
    assert "a notice [bold]" in text and "eval at step 2 · jobs/ndcg@20 0.5" in text and "step 1/10" not in text
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()
    logger.say("after")
    assert stream.getvalue().endswith("after\n")
