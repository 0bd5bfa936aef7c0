"""Folders of a sweep's jobs: one for one job, whatever the file system folds; values compared as they are read."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations

import pytest

from rankpo.sweeps import folder
from rankpo.sweeps.names import canonical, canonical_range, earlier_job_name, job_name, varied
from tests.sweeps import JOBS, swept

ALIKE = ["a/b", "a_b", "A_b", "a b", "a  b", "'a/b'", "a:b", "ä", "Ä", "a\u0308", "ß", "ss", "ﬁ", "fi", "x.", "x", "X",
         "x" * 200, "x" * 201, "x" * 119 + "Y", "x" * 119 + "y", "漢" * 60, "漢" * 61, "[a,b]", "{a:b}", "null", "'null'",
         "1", "'1'", "1.0", "true", "'true'", "./a", "../a", "a\\\\b", "-a", "+a"]  # fmt: skip


def folded(name: str) -> str:
    """As the most careless file systems compare names."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")


def test_names_that_fold_alike_are_of_one_job():
    names = {value: job_name([f"model.name_or_path={value}"]) for value in ALIKE}
    same = [
        (a, b)
        for a, b in combinations(ALIKE, 2)
        if folded(names[a]) == folded(names[b]) and canonical(f"k={a}") != canonical(f"k={b}")
    ]
    assert same == []
    assert all(name.isascii() and len(name) < 200 and "/" not in name and name[0] != "." for name in names.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr=0.0001"),
        ("optimizer.lr=1E-4", "optimizer.lr=.1e-3"),
        ("loss.beta=1.", "loss.beta=1.0"),
        ("exp_name='plain'", "exp_name=plain"),
        ("overwrite=True", "overwrite=true"),
        ("datasets=[jobs, rankpo]", "datasets=[jobs,rankpo]"),
    ],
)
def test_values_are_compared_as_they_are_read(one, other):
    assert canonical(one) == canonical(other)
    assert job_name([one]) == job_name([other])
    assert varied([one], ["-m", other]) == []


def test_a_number_in_quotes_is_another_value():
    assert canonical("x='1'") != canonical("x=1") and canonical("x='true'") != canonical("x=true")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("interval(1e-4, 1)", "interval(0.0001,1)", True),
        ("range(1,5)", "range(1, 5)", True),
        ("choice(a1e4,b)", "choice(a10000.0,b)", False),
        ("interval(1,2)", "interval(1,3)", False),
    ],
)
def test_ranges_are_compared_as_they_are_read(one, other, equal):
    assert (canonical_range(one) == canonical_range(other)) == equal


@pytest.mark.parametrize("item", ["overwrite=true", "resume=auto", "+overwrite=true", "search=optuna", "resume=null"])
def test_what_to_do_with_a_job_is_no_part_of_its_name(item):
    assert varied(["loss.beta=1", item], ["-m", "loss.beta=1,2"]) == ["loss.beta=1"]
    assert job_name(["loss.beta=1", item]) == "loss.beta=1"


def test_a_plain_job_has_a_plain_name():
    assert (
        job_name(["loss.beta=0.5", "+trainer.x=true", "optimizer.lr=1e-05"])
        == "loss.beta=0.5,+trainer.x=true,optimizer.lr=1e-05"
    )
    assert job_name([]) == "job"


def test_a_folder_of_an_earlier_version_is_found_for_the_same_job_alone(tmp_path):
    changes = ["model.name_or_path=a/b"]
    old = tmp_path / earlier_job_name(changes)
    folder.write_job(old, {"overrides": changes, "config": "x", "state": "finished"})
    assert folder.job_folder(tmp_path, changes) == old
    assert folder.job_folder(tmp_path, ["model.name_or_path=a_b"]) != old
    assert folder.job_folder(tmp_path, changes) == old


# as a user runs it


def jobs(cache, name: str) -> list[str]:
    return sorted(path.parent.name for path in (cache / name).glob("*/sweep_job.json"))


def test_a_sweep_again_with_the_value_in_other_words_and_overwrite(tmp_path, monkeypatch, capsys):
    common = (*JOBS, f"cache_dir={tmp_path}", "exp_name=s")
    assert swept(monkeypatch, *common, "optimizer.lr=1e-4,1e-3", "loss.beta=2.0") in (0, None)
    first = jobs(tmp_path, "s")
    assert first == ["optimizer.lr=0.0001", "optimizer.lr=0.001"]
    assert swept(monkeypatch, *common, "optimizer.lr=0.0001,0.001", "loss.beta=2.") in (0, None)
    assert jobs(tmp_path, "s") == first and capsys.readouterr().err.count("finished before") == 2
    assert swept(monkeypatch, *common, "optimizer.lr=0.0001,0.001", "loss.beta=2.0", "overwrite=True") in (0, None)
    assert jobs(tmp_path, "s") == first and "finished before" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_value_twice_is_one_job(tmp_path, monkeypatch):
    launcher = ("hydra/launcher=rankpo_accelerate", "hydra.launcher.jobs_at_once=2")
    common = (*JOBS, f"cache_dir={tmp_path}", "exp_name=s", *launcher)
    assert swept(monkeypatch, *common, "optimizer.lr=1e-4,0.0001") in (0, None)
    assert jobs(tmp_path, "s") == ["optimizer.lr=0.0001"]


@pytest.mark.parametrize(
    "given", ["seed=range(5,1)", "seed=range(1,1)", "loss=glob(nothing_like_this*)", "loss=glob(*,exclude=*)"]
)
@pytest.mark.parametrize("more", [(), ("hydra/launcher=rankpo_accelerate",)], ids=["here", "launched"])
def test_a_range_without_a_value_is_an_error(tmp_path, monkeypatch, capsys, given, more):
    assert swept(monkeypatch, *JOBS, f"cache_dir={tmp_path}", "exp_name=s", *more, given) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"{given} gives no job") and len(said.splitlines()) == 1, said
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_a_file_without_a_value_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: 'range(3,3)'}}}\n"
    (tmp_path / "conf" / "experiment" / "none.yaml").write_text(text)
    options = (f"--config-dir={tmp_path / 'conf'}", *JOBS, f"cache_dir={tmp_path / 'cache'}", "experiment=none")
    assert swept(monkeypatch, *options) == 2
    assert "seed=range(3,3) gives no job" in capsys.readouterr().err and not (tmp_path / "cache").exists()


def test_a_glob_that_fits_runs(tmp_path, monkeypatch):
    options = ("model=tiny_bert", "datasets=[toy_pairs]", "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=s")
    assert swept(monkeypatch, *options, "loss=glob(rankp*)") in (0, None)
    (name,) = jobs(tmp_path, "s")
    noted = json.loads((tmp_path / "s" / name / "sweep_job.json").read_text())
    assert name == "loss=rankpo" and noted["state"] == "finished"
