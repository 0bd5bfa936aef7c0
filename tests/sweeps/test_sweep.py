"""Sweeps: names, table, skipping, and real jobs in processes of their own."""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rankpo.config.messages import multirun_refusal
from rankpo.errors import ConfigError
from rankpo.runs.signals import Interrupted
from rankpo.sweeps import folder, jobs
from rankpo.sweeps.jobs import Job, Launching, Overseer, command, own_words, quoted
from rankpo.sweeps.names import varied
from tests.cli.test_launch import stopped
from tests.runs import RANKPO, curve, launch
from tests.starts import Started
from tests.sweeps import JOBS, swept


def test_a_job_is_named_by_what_it_varies():
    overrides = ["loss=rankpo", "loss.beta=2", "model.name_or_path=a/b"]
    assert varied(overrides, ["-m", "loss=rankpo", "loss.beta=1,2", "model.name_or_path=a/b,c"]) == overrides[1:]
    assert folder.job_name(overrides[1:]).startswith("loss.beta=2,model.name_or_path=a_b-")
    assert folder.job_name(overrides[1:2]) == "loss.beta=2"


def test_long_names_stay_different():
    names = {folder.job_name([f"model.name_or_path={'x' * 150}{number}"]) for number in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) < 200


def row(seed: str, beta: str, value: float, state: str = "finished") -> dict:
    return {"job": f"{beta},{seed}", "state": state, "seed": seed, "loss.beta": beta, "dev/ndcg@10": value}


def test_table_groups_seeds_and_sorts_by_the_metric():
    rows = [
        row("1", "1", 0.2),
        row("2", "1", 0.4),
        row("1", "2", 0.5),
        row("2", "2", 0.9),
        row("3", "2", 0.1, "failed"),
    ]
    first, second, failed = folder.summary(rows, "dev/ndcg@10")
    assert (first["loss.beta"], first["seeds"], first["dev/ndcg@10"]) == ("2", 2, pytest.approx(0.7))
    assert second["±"] == pytest.approx(0.2 / 2**0.5)  # two values: their distance over √2
    assert failed["state"] == "failed"


def test_table_names_the_metrics_there_are():
    with pytest.raises(ValueError, match=r"dev/ndcg@20 is not among .*dev/ndcg@10"):
        folder.summary([row("1", "1", 0.2)], "dev/ndcg@20")


def test_losses_are_sorted_upwards_and_unfinished_jobs_without_metrics():
    rows = [{**row("1", beta, float(beta)), "train/loss": float(beta)} for beta in ("2", "1", "3")]
    rows[2]["state"] = "pruned"
    assert [line["loss.beta"] for line in folder.summary(rows, None)] == ["1", "2", "3"]
    assert [line["loss.beta"] for line in folder.summary(rows, "ndcg@10")] == ["2", "1", "3"]
    assert folder.summary(rows, "ndcg@10", descending=False)[0]["loss.beta"] == "1"
    assert folder.summary(rows, None)[2] == {"loss.beta": "3", "seed": "1", "seeds": 0, "state": "pruned"}


def test_several_metrics_have_their_own_deviations():
    rows = [{**row(str(seed), "1", float(seed)), "train/loss": 10.0 * seed} for seed in (1, 2)]
    (line,) = folder.summary(rows, ["dev/ndcg@10", "train/loss"])
    assert line["dev/ndcg@10"] == 1.5 and line["train/loss"] == 15
    assert line["±"] == pytest.approx(0.5**0.5) and line["± train/loss"] == pytest.approx(10 * 0.5**0.5)


def test_jobs_without_metrics_have_a_table_too():
    assert folder.summary([{"job": "a", "state": "finished", "mining.top_k": "5"}], None) == [
        {"mining.top_k": "5", "seeds": 1}
    ]


def test_metrics_are_those_of_final(tmp_path):
    """The last evaluation is worse than the one whose weights FINAL holds; half a line is no line."""
    lines = (
        '{"step": 1, "time": 1.0, "eval/dev/ndcg@10": 0.5, "train/loss": 3.0}',
        '{"step": 2, "eval/dev/ndcg@10": 0.4}',
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join((*lines, '{"step": 3, "eval/dev')))
    assert folder.last_metrics(tmp_path) == {"dev/ndcg@10": 0.4, "train/loss": 3.0}
    (tmp_path / "FINAL").mkdir()
    (tmp_path / "FINAL" / "rankpo.json").write_text('{"metrics_after": {"dev/ndcg@10": 0.5}}')
    assert folder.last_metrics(tmp_path) == {"dev/ndcg@10": 0.5, "train/loss": 3.0}


def test_a_job_outside_of_its_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="exp_name, runs_dir, cache_dir and run_dir name the folder of the sweep"):
        folder.read_note(tmp_path)


def test_command_takes_torchrun_for_several_plain_processes(tmp_path):
    file = tmp_path / "cpu.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 3\n")
    assert command(str(file), None)[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert command(None, None) == [sys.executable]
    file.write_text("distributed_type: FSDP\nnum_processes: 2\n")
    assert "--config_file" in command(str(file), None)
    with pytest.raises(ConfigError, match="no such file"):
        command(str(tmp_path / "absent.yaml"), None)


def test_errors_are_shown_without_the_launchers_words():
    log = "step 1\nloss.beta must be > 0\nloss.beta must be > 0\nE1 torch/distributed/elastic failed\nTraceback\n"
    assert own_words(log) == "step 1 | loss.beta must be > 0"
    assert quoted(Path("/a/b=1,c'd")) == r"'/a/b=1,c\'d'"


def test_a_sweep_in_one_launch_of_several_processes_is_refused():
    refusal = multirun_refusal(["-m", "loss.beta=1,2"], {"WORLD_SIZE": "2"})
    assert refusal is not None and "python launch.py -m loss.beta=1,2" in refusal
    assert multirun_refusal(["-m", "loss.beta=1,2"], {}) is None


class Small:
    """Jobs that are a line of Python, by name, in place of a training."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(jobs, "arguments", lambda job, _: [sys.executable, "-c", job.overrides[0]])

    def job(self, name: str, code: str, **more: bool) -> Job:
        return Job(
            overrides=[code],
            changes=[name],
            name=name,
            folder=self.folder / name,
            digest=code,
            config=OmegaConf.create(),
            **more,
        )

    def states(self) -> dict[str, str]:
        return {
            path.parent.name: json.loads(path.read_text())["state"] for path in self.folder.glob(f"*/{folder.JOB_FILE}")
        }


FAILS = "raise SystemExit('it broke')"


def test_failed_jobs_are_one_line(tmp_path, monkeypatch, capsys):
    """The error is raised by this package, so that it has a message and no trace; Hydra's plugin only calls it."""
    monkeypatch.setattr(jobs, "arguments", lambda job, _: [sys.executable, "-c", FAILS])
    options = ("-m", "hydra/launcher=rankpo_accelerate", "loss.beta=-1,-2", f"cache_dir={tmp_path}", "exp_name=s")
    code, lines = stopped(monkeypatch, capsys, *RANKPO, *options)
    assert code == 1 and lines[-1].startswith("2 of 2 jobs failed: loss.beta=-1; loss.beta=-2. The same command"), lines


def test_jobs_go_on_after_a_failure_or_stop(tmp_path, monkeypatch, capsys):
    small = Small(tmp_path, monkeypatch)
    jobs = [small.job("a", "pass"), small.job("b", FAILS), small.job("c", "pass")]
    assert Launching(on_failure="stop").run(jobs, 3) == ["b"]
    assert small.states() == {"a": "finished", "b": "failed"}
    assert re.search(r"b: failed after \d+ s \(2/3\): it broke", capsys.readouterr().err)
    assert Launching().run(jobs, 3) == ["b"]
    assert small.states() == {"a": "finished", "b": "failed", "c": "finished"}
    assert "a: finished before (1/3)" in capsys.readouterr().err


def test_finished_jobs_run_again_when_they_are_to_be_overwritten(tmp_path, monkeypatch):
    small = Small(tmp_path, monkeypatch)
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('.')"
    for overwrite in (False, False, True):
        assert Launching().run([small.job("a", count, overwrite=overwrite)], 1) == []
    assert (tmp_path / "count").read_text() == ".."


def test_as_many_jobs_at_once_as_asked_for(tmp_path, monkeypatch):
    """Each of four jobs waits until two have begun; alone, the first would wait for ever."""
    small = Small(tmp_path, monkeypatch)
    code = f"""
import pathlib, sys, time
pathlib.Path({str(tmp_path)!r}, sys.argv[0] + str(time.time_ns()) + '.begun').touch()
while len(list(pathlib.Path({str(tmp_path)!r}).glob('*.begun'))) < 2:
    time.sleep(0.01)
"""
    assert Launching(jobs_at_once=2).run([small.job(str(number), code) for number in range(4)], 4) == []
    assert set(small.states().values()) == {"finished"}


def test_a_job_is_asked_to_end(tmp_path, monkeypatch, capsys):
    """As a training does: it ends with 75 after SIGTERM. One that is done by then is finished."""
    small = Small(tmp_path, monkeypatch)
    waits = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit({})); open('{}', 'w'); time.sleep(60)"

    class Impatient(Overseer):
        def __init__(self) -> None:
            self.over: list[str] = []

        def watch(self, job: Job) -> str | None:
            return "too slow" if (tmp_path / f"{job.name}.ready").exists() else None

        def ended(self, job: Job) -> None:
            self.over.append(job.name)

    jobs = [small.job(name, waits.format(code, tmp_path / f"{name}.ready")) for name, code in (("a", 75), ("b", 0))]
    overseer = Impatient()
    assert Launching().run(jobs, 2, overseer) == []
    assert small.states() == {"a": "pruned", "b": "finished"}
    assert overseer.over == ["a", "b"]
    assert "(1/2): too slow" in capsys.readouterr().err


def test_no_job_goes_on_alone(tmp_path, monkeypatch):
    small = Small(tmp_path, monkeypatch)
    mark = tmp_path / "ended"
    code = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(open({str(mark)!r}, 'w').close()))"

    def jobs():
        yield small.job("a", f"{code}; open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(60)")
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Launching(jobs_at_once=2).run(jobs(), 2)
    deadline = time.monotonic() + 600
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mark.exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"jobs_at_once": 0}, "jobs_at_once must be >= 1, got 0"),
        ({"num_processes": 0}, "num_processes must be >= 1 or null, got 0"),
        ({"on_failure": "retry"}, "on_failure must be continue or stop, got 'retry'"),
        ({"config_file": "absent.yaml"}, "config_file=absent.yaml: no such file"),
    ],
)
def test_launcher_settings_are_checked(keys, message):
    with pytest.raises(ConfigError, match=message):
        Launching(**keys)


def test_sweep_in_one_process_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    where = (f"cache_dir={tmp_path}", "exp_name=s")
    assert swept(monkeypatch, *JOBS, "loss.beta=1,-1", *where) == 2
    assert "loss.beta must be > 0, got -1" in capsys.readouterr().err
    assert (tmp_path / "s" / "loss.beta=-1" / "sweep_job.json").read_text().count("must be > 0, got -1") == 1
    # an unfinished job is continued, as it would be after the loss of its process
    (tmp_path / "s" / "loss.beta=2").mkdir()
    (tmp_path / "s" / "loss.beta=2" / "metrics.jsonl").touch()
    assert swept(monkeypatch, *JOBS, "loss.beta=1,2", "seed=42", *where) == 0
    capsys.readouterr()
    assert swept(monkeypatch, *JOBS, "loss.beta=1,2", "seed=42", *where) == 0
    assert capsys.readouterr().err.count("finished before") == 2
    with (tmp_path / "s" / "sweep.csv").open() as file:
        states = {line["loss.beta"]: line["state"] for line in csv.DictReader(file) if line["loss.beta"]}
    assert states["1"] == states["2"] == "finished"


def test_a_sweep_that_is_asked_to_end_does_not_go_on_with_its_next_job(tmp_path, monkeypatch):
    begun = []

    def interrupted(experiment):
        begun.append(experiment.run_dir.name)
        raise Interrupted("SIGTERM")

    monkeypatch.setattr("rankpo.config.experiment.run", interrupted)
    assert swept(monkeypatch, *JOBS, "loss.beta=1,2", f"cache_dir={tmp_path}", "exp_name=s") == 75
    assert begun == ["loss.beta=1"]
    assert folder.read_job(tmp_path / "s" / "loss.beta=1")["state"] == "running"


@pytest.mark.parametrize("betas", ["1,2", pytest.param("1,2,3,4,5,6", marks=pytest.mark.slow)])
def test_sweep_of_two_processes_killed_and_continued(tmp_path, betas):
    """The driver is killed while a job runs; started again, every job is there once, and one table of all."""
    options = ("-m", "hydra/launcher=rankpo_accelerate", "hydra.launcher.num_processes=2", *JOBS)
    options = (*options, f"loss.beta={betas}", f"cache_dir={tmp_path}", "exp_name=s")
    count = betas.count(",") + 1
    folder = tmp_path / "s"
    driver = Started(*options)
    driver.until(lambda: len(list(folder.glob("*/launch.log"))) > count // 3)
    driver.kill()
    done = launch(*options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished before") == count // 3
    jobs = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/sweep_job.json")}
    assert {name: job["state"] for name, job in jobs.items()} == {
        f"loss.beta={beta}": "finished" for beta in betas.split(",")
    }
    for name in jobs:
        assert (folder / name / "FINAL").is_dir()
        assert len(curve(folder / name)) == 1  # one line of a run of two updates: nothing was logged twice
    with (folder / "sweep.csv").open() as file:
        assert sorted(line["loss.beta"] for line in csv.DictReader(file)) == betas.split(",")
    assert done.stdout.count("\n") == count + 3  # an empty line, the title, the names
