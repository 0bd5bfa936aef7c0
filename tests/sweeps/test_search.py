"""search=optuna: ranges, continuing, pruning, failures; jobs that write a number instead of training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.sweeps import search as module
from rankpo.sweeps.curve import Curve
from rankpo.sweeps.folder import job_name, write_job
from rankpo.sweeps.jobs import Job
from rankpo.sweeps.optuna import SearchSettings
from rankpo.sweeps.ranges import split
from rankpo.sweeps.search import Search
from tests.runs import launch
from tests.sweeps import JOBS, swept

optuna = pytest.importorskip("optuna", reason="pip install 'rankpo[search]'")
parser = OverridesParser.create()
RANGE = "loss.beta=interval(0,10)"


def settings(tmp_path, **more) -> SearchSettings:
    return SearchSettings(**{"metric": "dev/ndcg@10", "storage": str(tmp_path / "search.journal"), **more})


class Driver:
    """A search over jobs of `value(loss.beta)`, run one after the other. ran: the values of beta that were run."""

    def __init__(self, tmp_path: Path, value=lambda beta: -((beta - 3) ** 2), ranges=(RANGE,), **more) -> None:
        self.folder = tmp_path
        self.value = value
        self.ran: list[float] = []
        overwrite = more.pop("overwrite", False)
        fixed, found = split(parser.parse_overrides(list(ranges)), {}, parser.parse_override)

        def job(values) -> Job:
            changes = [f"{key}={text}" for key, text in values.items()]
            name = job_name(changes)
            folder = tmp_path / name
            return Job(
                overrides=[*fixed, *changes],
                changes=changes,
                name=name,
                folder=folder,
                digest=name,
                config=OmegaConf.create(),
                overwrite=overwrite,
            )

        self.search = Search(settings(tmp_path, **more), found, job, watched=True)

    def run(self, at_most: int = 100) -> Driver:
        for number, job in enumerate(self.search.jobs()):
            if number == at_most:  # killed: asked for, never told
                break
            self.train(job)
            self.search.ended(job)
        return self

    def train(self, job: Job) -> None:
        beta = float(job.changes[0].partition("=")[2])
        self.ran.append(beta)
        value = self.value(beta)
        state = "failed" if value is None else "finished"
        write_job(job.folder, {"overrides": job.changes, "config": job.digest, "state": state})
        if value is not None:
            self.log(job, (0, 9.0), (4, value))

    @staticmethod
    def log(job: Job, *points: tuple[int, float]) -> None:
        job.folder.mkdir(exist_ok=True)
        with (job.folder / "metrics.jsonl").open("a") as file:
            for step, value in points:
                file.write(json.dumps({"step": step, "time": 0.0, "eval/dev/ndcg@10": value}) + "\n")

    @property
    def states(self) -> list[str]:
        return [trial.state.name for trial in self.search.study.trials]


def test_ranges_as_hydra_writes_them():
    lines = (
        "a=interval(0.1,5)", "b=tag(log,interval(1e-5,1e-3))", "c=int(interval(1,8))", "d=range(1,7,step=2)",
        "e=range(0,1,step=0.25)", "f=choice(x,[1,2])", "g=0.5,1", "h=tag(log,int(interval(1,64)))",
    )  # fmt: skip
    fixed, ranges = split(
        parser.parse_overrides([*lines, "loss=dpo", "search=optuna", "search.seed=1"]), {}, lambda t: t
    )
    assert fixed == ["loss=dpo"]
    real, whole, choice = (
        optuna.distributions.FloatDistribution,
        optuna.distributions.IntDistribution,
        optuna.distributions.CategoricalDistribution,
    )
    assert {key: module.distribution(item) for key, item in ranges.items()} == {
        "a": real(0.1, 5.0),
        "b": real(1e-5, 1e-3, log=True),
        "c": whole(1, 8),
        "d": whole(1, 5, step=2),  # 1, 3, 5: the end stands outside, as in a sweep without a search
        "e": real(0.0, 0.75, step=0.25),
        "f": choice(["x", "[1,2]"]),
        "g": choice(["0.5", "1"]),
        "h": whole(1, 64, log=True),
    }


def test_ranges_of_the_config_give_way_to_the_command_line():
    params = {"loss.beta": "interval(1,2)", "loss.temperature": "interval(0.1,1)"}
    fixed, ranges = split(parser.parse_overrides(["loss.beta=3"]), params, parser.parse_override)
    assert fixed == ["loss.beta=3"] and list(ranges) == ["loss.temperature"]
    with pytest.raises(ConfigError, match=r"search\.params\.a must be a range"):
        split([], {"a": "3"}, parser.parse_override)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["loss.beta=1"], "nothing to search"),
        (["seed=1,2"], "luckiest"),
        (["exp_name=a,b"], "exp_name must not have a range"),
    ],
)
def test_what_cannot_be_searched(lines, message):
    with pytest.raises(ConfigError, match=message):
        split(parser.parse_overrides(lines), {}, parser.parse_override)


@pytest.mark.parametrize("line", ["a=tag(log,interval(0,1))", "a=range(3,3)", "a=interval(2,1)"])
def test_ranges_that_hold_nothing(line):
    with pytest.raises(ConfigError, match=r"a="):
        module.distribution(parser.parse_override(line))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metric": None}, "metric is not set"),
        ({"direction": "up"}, "direction must be maximize or minimize, got 'up'"),
        ({"metric": ["a", "b"]}, "direction must have one value for each of a, b"),
        ({"metric": ["a", "b"], "direction": ["maximize", "minimize"], "pruning": "median"}, "needs one metric"),
        ({"num_trials": 0}, "num_trials must be >= 1, got 0"),
        ({"sampler": "grid"}, "sampler must be one of tpe, random, got 'grid'"),
    ],
)
def test_settings_are_checked(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **keys)


def test_a_search_finds_the_best_and_says_it(tmp_path, capsys):
    """The largest of -(β - 3)² over [0, 10] is at 3; 24 draws at random come within 1 of it with probability 0.995."""
    driver = Driver(tmp_path, num_trials=24).run()
    driver.search.close([])
    (best,) = driver.search.study.best_trials
    assert abs(best.params["loss.beta"] - 3) < 0.5
    assert f"best: loss.beta={best.params['loss.beta']:.6g}" in capsys.readouterr().err
    assert len(driver.ran) == 24


def test_minimize_turns_around(tmp_path):
    driver = Driver(tmp_path, num_trials=8, direction="minimize", sampler="random").run()
    assert driver.search.study.best_value == min(-((beta - 3) ** 2) for beta in driver.ran)


def test_killed_and_continued_gives_the_same_values(tmp_path):
    """Killed in the fourth job: the second start runs it again, then goes on as if nothing had happened."""
    whole = Driver(tmp_path / "whole", num_trials=8, startup_trials=3).run().ran
    first = Driver(tmp_path / "parts", num_trials=8, startup_trials=3).run(at_most=3).ran
    second = Driver(tmp_path / "parts", num_trials=8, startup_trials=3).run().ran
    assert len(set(whole)) == 8
    assert (first, second) == (whole[:3], whole[3:])
    assert Driver(tmp_path / "parts", num_trials=8, startup_trials=3).run().ran == []
    assert len(Driver(tmp_path / "parts", num_trials=10, startup_trials=3).run().ran) == 2


def test_another_seed_draws_others(tmp_path):
    first, second = (Driver(tmp_path / str(seed), num_trials=3, seed=seed).run().ran for seed in (1, 2))
    assert not set(first) & set(second)


def test_another_search_in_the_same_storage_is_refused(tmp_path):
    Driver(tmp_path, num_trials=1).run()
    with pytest.raises(ConfigError, match=r"other ranges: .*overwrite=true"):
        Driver(tmp_path, num_trials=1, ranges=("loss.beta=interval(0,5)",))
    with pytest.raises(ConfigError, match=r"other overrides: \[\] -> \['loss=dpo'\]"):
        Driver(tmp_path, num_trials=1, ranges=(RANGE, "loss=dpo"))
    assert len(Driver(tmp_path, num_trials=1, ranges=("loss.beta=interval(0,5)",), overwrite=True).run().ran) == 1


def test_a_database_serves_as_well(tmp_path):
    storage = f"sqlite:///{tmp_path}/search.db"
    assert len(Driver(tmp_path, num_trials=2, storage=storage).run().ran) == 2
    assert len(Driver(tmp_path, num_trials=3, storage=storage).run().ran) == 1


def test_equal_values_are_one_job(tmp_path):
    driver = Driver(tmp_path, num_trials=6, ranges=("loss.beta=1,2",)).run()
    assert sorted(driver.ran) == [1, 2]
    assert driver.states == ["COMPLETE"] * 6


def test_failed_jobs_run_again_at_the_next_start(tmp_path):
    first = Driver(tmp_path, num_trials=4, value=lambda beta: None if beta > 5 else beta).run()
    failed = [beta for beta in first.ran if beta > 5]
    assert failed and first.states.count("FAIL") == len(failed)
    second = Driver(tmp_path, num_trials=4).run()
    assert second.ran == failed
    assert second.states.count("COMPLETE") == 4


def test_no_finished_job_is_an_error(tmp_path):
    driver = Driver(tmp_path, num_trials=2, value=lambda beta: None).run()
    with pytest.raises(RuntimeError, match="no job of the search finished; failed: a"):
        driver.search.close(["a"])


def test_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"search.metric=mrr@10 is not among dev/ndcg@10"):
        Driver(tmp_path, num_trials=2, metric="mrr@10").run()


def test_not_a_number_is_a_failure(tmp_path):
    driver = Driver(tmp_path, num_trials=2, value=lambda beta: math.inf).run()
    assert driver.states == ["FAIL", "FAIL"]


def test_pruning_by_the_median_of_finished_jobs(tmp_path):
    """Three jobs had 1, 2, 3 at update 4: one with 1.5 is below their median 2, one with 2.5 is not."""
    values = iter([1.0, 2.0, 3.0])
    driver = Driver(tmp_path, num_trials=5, pruning="median", pruning_trials=3, value=lambda beta: next(values))
    source = driver.search.jobs()
    for _ in range(3):
        job = next(source)
        driver.train(job)
        driver.search.watch(job)
        driver.search.ended(job)
    worse, better = next(source), next(source)
    Driver.log(worse, (0, 0.1))
    assert driver.search.watch(worse) is None  # before the first update nothing was learnt
    Driver.log(worse, (4, 1.5))
    Driver.log(better, (4, 2.5))
    assert driver.search.watch(worse) == "dev/ndcg@10 1.5 at update 4 is worse than the median"
    assert driver.search.watch(better) is None
    write_job(worse.folder, {"overrides": worse.changes, "config": worse.digest, "state": "pruned"})
    driver.search.ended(worse)
    assert driver.states == ["COMPLETE"] * 3 + ["PRUNED", "RUNNING"]


def test_a_curve_is_read_as_it_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve = Curve(path, "ndcg@10")
    assert curve.news() == []
    line = '{"step": 2, "eval/dev/ndcg@10": 0.5}\n'
    path.write_text(line + line[:9])
    assert curve.news() == [(2, 0.5)]
    path.write_text(line + line.replace("2", "4", 1))
    assert curve.news() == [(4, 0.5)]
    path.write_text(line)  # continued from a checkpoint before the second line
    assert curve.news() == [(2, 0.5)]


def test_pruning_needs_a_launcher_that_watches(tmp_path):
    _, ranges = split(parser.parse_overrides([RANGE]), {}, parser.parse_override)
    with pytest.raises(ConfigError, match=r"search.pruning=median needs hydra/launcher=rankpo_accelerate"):
        Search(settings(tmp_path, pruning="median"), ranges, lambda values: None, watched=False)


def test_a_search_in_one_process_continues(tmp_path, monkeypatch, capsys):
    """launch.py itself: two trials, then a third; what is there is not trained again."""
    options = ("search=optuna", "search.metric=train/loss", "search.direction=minimize", "loss.beta=interval(1,4)")
    options = (*options, *JOBS, f"cache_dir={tmp_path}", "exp_name=s")
    assert swept(monkeypatch, *options, "search.num_trials=2") == 0
    first = capsys.readouterr()
    assert swept(monkeypatch, *options, "search.num_trials=3") == 0
    second = capsys.readouterr()
    assert first.err.count("FINAL written") == 2 and second.err.count("FINAL written") == 1
    assert len(list((tmp_path / "s").glob("loss.beta=*/FINAL"))) == 3
    assert second.out.count("\n") == 6  # an empty line, the title, the names, three jobs
    assert "best: loss.beta=" in second.err


def test_ranges_without_a_search_say_what_is_missing(tmp_path, monkeypatch, capsys):
    assert swept(monkeypatch, *JOBS, "loss.beta=interval(1,4)", f"cache_dir={tmp_path}") == 2
    assert "add search=optuna" in capsys.readouterr().err
    assert swept(monkeypatch, *JOBS, "search.num_trials=3", f"cache_dir={tmp_path}") == 2
    assert capsys.readouterr().err == "search.num_trials is a key of search=optuna; add search=optuna\n"


def test_a_search_that_is_no_sweep_says_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match=r"python launch.py -m search=optuna"):
        compose([*JOBS, "search=optuna", "search.metric=train/loss"])


@pytest.mark.slow
def test_a_pruned_job_ends_with_a_checkpoint(tmp_path):
    """Real processes: a rate of 1e-9 learns nothing, stays below the job before it, and is asked to end."""
    options = (
        *("-m", "search=optuna", "search.metric=toy_pairs/margin", "search.num_trials=2", "search.pruning=median"),
        *("search.pruning_trials=1", "search.sampler=random", "search.seed=0", "hydra/launcher=rankpo_accelerate"),
        *(*JOBS, "eval_datasets=[toy_pairs]", "trainer.max_steps=200", "trainer.eval_every=10", "scheduler=constant"),
        *("optimizer=sgd", "optimizer.lr=0.1,1e-09", f"cache_dir={tmp_path}", "exp_name=s"),
    )
    done = launch(*options)
    assert done.returncode == 0, done.stderr
    jobs = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "s").glob("*/sweep_job.json")}
    assert jobs["optimizer.lr=0.1"]["state"] == "finished"
    assert jobs["optimizer.lr=1e-09"]["state"] == "pruned"
    assert "is worse than the median" in jobs["optimizer.lr=1e-09"]["reason"]
    pruned = tmp_path / "s" / "optimizer.lr=1e-09"
    assert not (pruned / "FINAL").exists() and list((pruned / "checkpoints").glob("step-*"))
    again = launch(*options)
    assert again.returncode == 0 and "started" not in again.stderr, again.stderr
