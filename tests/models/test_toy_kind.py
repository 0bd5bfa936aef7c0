"""A kind of model from outside: a folder and a yaml, without a change of any other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rankpo
from rankpo.config import packages
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.models.loading import LoadingError
from tests.runs import curve, final_weights, launch, train
from tests.toy_kind.records import CountingTrainer

CONF = Path(__file__).parents[1] / "toy_kind" / "conf"
TOY = (
    f"hydra.searchpath=[file://{CONF}]",
    "packages=[tests.toy_kind]",
    "kind=toy",
    "model=tiny_bert",
    "model.random.num_hidden_layers=1",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "trainer.max_steps=2",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
RECIPES = {
    "contrastive": ("loss=contrastive", "loss.temperature=0.1", "datasets=[toy_contrastive]"),
    "rankpo": ("loss=rankpo", "datasets=[toy_pairs]"),
}


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch):
    """What an earlier test declared is not permitted here."""
    monkeypatch.setattr(packages, "_declared", set())
    monkeypatch.delenv(packages.VARIABLE, raising=False)


@pytest.mark.parametrize("loss", RECIPES)
def test_it_trains_is_evaluated_saved_and_loaded(tmp_path, loss):
    evaluated = (
        "eval_datasets=[jobs_test]",
        "eval_datasets.jobs_test.num_profiles=20",
        "eval_datasets.jobs_test.num_posts=3",
    )
    train(*TOY, *RECIPES[loss], *evaluated, f"cache_dir={tmp_path}", "exp_name=run")
    run = tmp_path / "run"
    losses = curve(run)
    assert len(losses) == 2 and losses[0] != losses[1]
    start, end = curve(run, "eval/jobs_test/ndcg@20")
    assert min(start, end) >= 0 and max(start, end) <= 1
    record = json.loads((run / "FINAL" / "rankpo.json").read_text())
    assert (record["kind"], record["kind_class"]) == ("toy", "tests.toy_kind.config.ToyKind")
    model = rankpo.load(run / "FINAL", "cpu")
    assert type(model).__name__ == "ToyModel" and model.settings.passage_max_length == 96
    for name, tensor in final_weights(run).items():
        torch.testing.assert_close(model.base.state_dict()[name], tensor)
    # the same numbers from the folder alone, and from the checkpoint's kind in the saved config
    rows = train(*TOY, *evaluated, "task=evaluate", f"task.run={run}", f"cache_dir={tmp_path}", "exp_name=evaluated")
    assert rows.run_dir.name == "evaluated"
    found = tmp_path / "evaluated" / "evaluation" / "FINAL" / "jobs_test" / "metrics.json"
    assert json.loads(found.read_text())["metrics"]["ndcg@20"] == pytest.approx(end, abs=1e-6)


def test_a_dataset_and_a_trainer_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(CountingTrainer, "updates", 0)
    own = ("loss=rankpo", "trainer=counting", "datasets=[colours]", "datasets.colours.count=6")
    train(*TOY, *own, f"cache_dir={tmp_path}", "exp_name=run")
    assert CountingTrainer.updates == 2
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["datasets"]["colours"]["examples"] == 6


def test_from_the_command_line(tmp_path):
    given = [item for item in TOY if not item.startswith("hydra.searchpath")]
    done = launch("--config-dir", str(CONF), *given, *RECIPES["rankpo"], f"cache_dir={tmp_path}", "exp_name=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "FINAL" / "rankpo.json").read_text())["kind"] == "toy"


def test_a_package_that_nobody_declared_is_refused():
    undeclared = [item for item in TOY if not item.startswith("packages")]
    with pytest.raises(
        ConfigError, match=r"model\._target_=tests.toy_kind.config.ToyKind is not allowed; .* packages=\[…\]"
    ):
        compose([*undeclared, *RECIPES["rankpo"]])


@pytest.mark.parametrize("variable", ["tests.toy_kind", "another, tests"])
def test_the_environment_declares_packages_too(monkeypatch, variable):
    monkeypatch.setenv(packages.VARIABLE, variable)
    undeclared = [item for item in TOY if not item.startswith("packages")]
    assert compose([*undeclared, *RECIPES["rankpo"]]).model.kind == "toy"


def test_an_installed_distribution_declares_packages_too(monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda: ("tests.toy_kind",))
    undeclared = [item for item in TOY if not item.startswith("packages")]
    assert compose([*undeclared, *RECIPES["rankpo"]]).model.kind == "toy"


def test_a_yaml_cannot_permit_code_by_itself(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\npackages: [os]\n")
    with pytest.raises(ConfigError, match=r"packages=os is set in a yaml, .*write packages=\[os\] on the command line"):
        compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])


@pytest.mark.parametrize("name", ["a/b", "os.", "1x"])
def test_names_that_are_no_packages_are_refused(name):
    with pytest.raises(ConfigError, match="is not the name of a Python package"):
        compose([f"packages=['{name}']"])


def test_a_saved_folder_of_an_undeclared_kind_is_not_loaded(tmp_path):
    record = {"kind": "toy", "kind_class": "tests.toy_kind.config.ToyKind", "settings": {}}
    (tmp_path / "rankpo.json").write_text(json.dumps(record))
    with pytest.raises(
        LoadingError, match=r"kind 'toy' is the class tests.toy_kind.config.ToyKind, .*RANKPO_PACKAGES=tests"
    ):
        rankpo.load(tmp_path, "cpu")


def test_declared_packages_are_no_part_of_a_run(tmp_path):
    assert "packages" not in compose([*TOY, *RECIPES["rankpo"], f"cache_dir={tmp_path}"]).config
