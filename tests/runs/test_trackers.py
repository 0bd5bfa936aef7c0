"""Trackers: several at once, the same curve after an interruption, names, and keys that nobody reads."""

from __future__ import annotations

import importlib.machinery
import io
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from rankpo.errors import ConfigError
from rankpo.runs import trackers
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.trackers import default_name
from tests.runs import RANKPO, curve, train


def module(name: str, **contents) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(made, key, value)
    return made


class Mlflow:
    """What accelerate calls of mlflow, kept by run id."""

    def __init__(self, monkeypatch) -> None:
        self.runs: dict[str, dict] = {}
        self.active = ""
        limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        monkeypatch.setitem(
            sys.modules,
            "mlflow",
            module(
                "mlflow",
                search_experiments=lambda filter_string: [],
                create_experiment=lambda name, artifact_location, tags: name,
                start_run=self.start,
                log_params=lambda values: self.runs[self.active]["params"].update(values),
                log_metrics=lambda values, step: self.runs[self.active]["metrics"].append((step, values)),
                end_run=lambda: self.runs[self.active].update(ended=True),
                utils=SimpleNamespace(validation=limits),
            ),
        )

    def start(self, run_id, experiment_id, run_name, **more):
        self.active = run_id or f"id{len(self.runs)}"
        self.runs.setdefault(
            self.active, {"experiment": experiment_id, "name": run_name, "params": {}, "metrics": [], "ended": False}
        )
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))


class Trackio:
    """What accelerate calls of trackio: runs by name; "never" gives a taken name a suffix."""

    def __init__(self, monkeypatch) -> None:
        self.runs: dict[str, list] = {}
        self.options: list[dict] = []
        monkeypatch.setitem(sys.modules, "trackio", module("trackio", init=self.init))

    def init(self, project, name, resume, config, **more):
        self.options.append({"project": project, "resume": resume, **more})
        if resume == "never" and name in self.runs:
            name = f"{name}-2"
        rows = self.runs.setdefault(name, [])
        return SimpleNamespace(name=name, log=lambda values, step: rows.append((step, values)), finish=lambda: None)


def losses(rows: list) -> list[tuple[int, float]]:
    return [(step, values["train/loss"]) for step, values in rows if "train/loss" in values]


def test_several_at_once_continue_their_curves(tmp_path, monkeypatch):
    """Two trackers and TensorBoard; interrupted after a checkpoint, continued: every step once, with its value."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mlflow, trackio = Mlflow(monkeypatch), Trackio(monkeypatch)
    options = (
        *RANKPO, "tracker=[tensorboard,mlflow,trackio]", "tracker.name=my run", "tracker.project=p", "exp_name=run",
        "trainer.save_every=2", f"cache_dir={tmp_path}",
    )  # fmt: skip
    train(*options)
    for gone in ("FINAL", "checkpoints/step-6"):  # as if it had been killed in its sixth update
        shutil.rmtree(tmp_path / "run" / gone)
    train(*options, "resume=auto")
    expected = list(enumerate(curve(tmp_path / "run"), 1))
    (run,) = mlflow.runs.values()
    assert losses(run["metrics"]) == expected and run["ended"]
    assert (run["experiment"], run["name"], run["params"]["trainer.batch_size"]) == ("p", "my run", 4)
    assert {name: losses(rows) for name, rows in trackio.runs.items()} == {"my run": expected}
    assert [options["resume"] for options in trackio.options] == ["never", "allow"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    train(*options, "overwrite=true", "trainer.max_steps=1")
    assert len(mlflow.runs) == 2 and len(trackio.runs) == 2, "one that starts again has curves of its own"


def test_wandb_is_told_name_entity_and_project(tmp_path, monkeypatch):
    told: dict = {}
    run = SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=lambda **options: told.update(options) or run))
    command = ("tracker=wandb", "tracker.mode=offline", "tracker.entity=team", "trainer.max_steps=1")
    train(*RANKPO, *command, "exp_name=e", "run_count=run1", f"cache_dir={tmp_path}")
    assert (told["project"], told["entity"], told["name"], told["mode"]) == ("rankpo", "team", "e/run1", "offline")
    assert told["id"] == (tmp_path / "e/run1/tracker_id").read_text() and told["resume"] == "allow"


def test_default_name(tmp_path):
    assert default_name(tmp_path, {"exp_name": "e", "run_count": "run1"}) == "e/run1"
    assert default_name(tmp_path, {"exp_name": "e", "run_count": "."}) == "e"
    assert default_name(tmp_path / "folder", {}) == "folder"


def test_no_tracker(tmp_path):
    train(*RANKPO, "tracker=none", "trainer.max_steps=1", "exp_name=run", f"cache_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"tracker is not set.* choose tracker="):
        train(*RANKPO, "tracker=[]", f"cache_dir={tmp_path}")


WANDB, TENSORBOARD = {"wandb": True}, {"tensorboard": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backends": {"wandbb": True}}, r"tracker has no 'wandbb'; did you mean wandb\?"),
        ({"backends": WANDB, "mode": "online"}, r"tracker=wandb has no key: set WANDB_API_KEY, or tracker\.mode=offline"),
        ({"backends": WANDB, "mode": "off"}, r"tracker\.mode must be one of online, offline, disabled, got 'off'"),
        (
            {"backends": TENSORBOARD, "entity": "team"},
            r"tracker\.entity is read by tracker=wandb; chosen: tensorboard, which read no key",
        ),
        (
            {"backends": {"mlflow": True}, "colour": 1},
            r"tracker\.colour is read by no tracker; chosen: mlflow, which read name, project",
        ),
        ({"backends": {}, "name": "x"}, r"tracker\.name is read by tracker=wandb and tracker=mlflow and tracker=trackio; chosen: none"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(tmp_path, monkeypatch, settings, message):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=message):
        MetricsLogger(tmp_path, tracker=settings, stream=io.StringIO())


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(ConfigError, match=rf"tracker={name} needs {name}: pip install 'rankpo\[{name}\]'"):
        MetricsLogger(tmp_path, tracker={"backends": {name: True}}, stream=io.StringIO())


def test_every_tracker_has_a_yaml():
    from pathlib import Path

    import yaml

    folder = Path(__file__).parents[2] / "config" / "tracker"
    read = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert read.pop("none") == {"backends": {}}
    assert {name: set(node) - {"backends"} for name, node in read.items()} == {
        name: set(keys) for name, keys in trackers.KEYS.items()
    }
    assert all(node["backends"] == {name: True} for name, node in read.items())
    assert json.dumps(read)
