"""Trackers of accelerate for the metrics of a run, in addition to the console and metrics.jsonl.

A continued run continues its curves, because the run directory stores the identifier of the run in each service. Metrics
that were sent before an interruption are not sent again when they are recomputed, except to TensorBoard, whose files can be
truncated.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError, unknown
from rankpo.runs.folder import TRACKER_ID, TRACKER_RUNS
from rankpo.storage.atomic import replace_text
from rankpo.storage.json_files import read_json, write_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Sent = Collection[tuple[str, int]]  # Kind and step of the lines sent before.
# The keys that each tracker reads.
KEYS: dict[str, tuple[str, ...]] = {
    "wandb": ("name", "project", "entity", "mode"),
    "tensorboard": (),
    "mlflow": ("name", "project"),
    "trackio": ("name", "project", "space_id"),
}
MODES = ("online", "offline", "disabled")


class Trackers:
    """Open trackers. sent: the lines that they received before this start."""

    def __init__(self, opened: Mapping[str, GeneralTracker], sent: Sent) -> None:
        self._opened, self._sent = opened, frozenset(sent)

    def log(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, tracker in self._opened.items():
            if name == "tensorboard" or (kind, step) not in self._sent:
                tracker.log(dict(metrics), step=step)

    def finish(self) -> None:
        for tracker in self._opened.values():
            tracker.finish()


def trackers_of(
    settings: Mapping[str, Any], run_dir: Path, config: Mapping[str, object]
) -> Callable[[int, Sent], Trackers] | None:
    """Returns a function that opens the trackers at the start of training, or None without trackers.

    settings: the config's `tracker` node. Raises ConfigError, before training, for invalid settings.
    """
    chosen = [name for name, wanted in (settings.get("backends") or {}).items() if wanted]
    problems = [*_unknown(settings, chosen), *(problem for name in chosen for problem in _missing(name, settings))]
    if problems:
        raise ConfigError(problems)
    if not chosen:
        return None
    run = _Run(settings, run_dir, config)

    def start(first_step: int, sent: Sent) -> Trackers:
        return Trackers({name: run.open(name, first_step) for name in chosen}, sent)

    return start


def _unknown(settings: Mapping[str, object], chosen: Collection[str]) -> list[str]:
    """Reports names unknown to the chosen trackers."""
    problems = [unknown("tracker", name, KEYS) for name in chosen if name not in KEYS]
    read = {key for name in chosen for key in KEYS.get(name, ())}
    for key in settings:
        if key == "backends" or key in read or problems:
            continue
        readers = [f"tracker={name}" for name, keys in KEYS.items() if key in keys]
        problems.append(
            f"tracker.{key} is read by {' and '.join(readers) or 'no tracker'}; "
            f"chosen: {', '.join(chosen) or 'none'}, which read {', '.join(sorted(read)) or 'no key'}"
        )
    return problems


def _missing(name: str, settings: Mapping[str, object]) -> list[str]:
    """Reports a missing package, an unknown key or an unknown mode of a tracker."""
    if name not in KEYS:
        return []
    if name == "wandb":
        mode = settings.get("mode", "online")
        if mode not in MODES:
            return [f"tracker.mode must be one of {', '.join(MODES)}, got {mode!r}"]
        if mode == "online" and not os.environ.get("WANDB_API_KEY") and not (Path.home() / ".netrc").exists():
            return ["tracker=wandb has no key: set WANDB_API_KEY, or tracker.mode=offline"]
    return [f"tracker={name} needs {name}: pip install 'rankpo[{name}]'"] if find_spec(name) is None else []


def _tracking() -> ModuleType:
    """accelerate's trackers; importing them takes seconds, and most tasks have none."""
    from accelerate import tracking

    return tracking


class _Run:
    """Identity of a run in trackers: name, project, and the identifier that the tracker assigned."""

    def __init__(self, settings: Mapping[str, object], run_dir: Path, config: Mapping[str, object]) -> None:
        self.settings, self.run_dir, self.config = settings, run_dir, config
        self.project = str(settings.get("project") or "rankpo")
        self.name = str(settings.get("name") or default_name(run_dir, config))

    def open(self, name: str, first_step: int) -> GeneralTracker:
        opened = {
            "wandb": self._wandb,
            "tensorboard": lambda: self._tensorboard(first_step),
            "mlflow": self._mlflow,
            "trackio": self._trackio,
        }[name]()
        return opened

    def _wandb(self) -> GeneralTracker:
        more = {"entity": self.settings["entity"]} if self.settings.get("entity") else {}
        tracker = _tracking().WandBTracker(
            self.project,
            name=self.name,
            id=identity(self.run_dir),
            resume="allow",
            mode=self.settings.get("mode", "online"),
            dir=str(self.run_dir),
            config=dict(self.config),
            **more,
        )
        tracker.start()
        return tracker

    def _tensorboard(self, first_step: int) -> GeneralTracker:
        # A resumed run sends the lines after its last checkpoint again.
        tracker = _tracking().TensorBoardTracker(
            "tensorboard", self.run_dir, purge_step=first_step + 1 if first_step else 0
        )
        tracker.start()
        return tracker

    def _mlflow(self) -> GeneralTracker:
        known = self._known("mlflow")
        tracker = _tracking().MLflowTracker(experiment_name=self.project, run_name=self.name, run_id=known)
        tracker.start()
        if known is None:
            tracker.store_init_configuration(_flat(self.config))
            self._note("mlflow", tracker.tracker.info.run_id)
        return tracker

    def _trackio(self) -> GeneralTracker:
        known = self._known("trackio")
        more = {"space_id": self.settings["space_id"]} if self.settings.get("space_id") else {}
        # trackio renames our run if a foreign run of this name exists.
        resume = "never" if known is None else "allow"
        tracker = _tracking().TrackioTracker(
            self.project, name=known or self.name, resume=resume, config=_flat(self.config), **more
        )
        tracker.start()
        if known is None:
            self._note("trackio", tracker.tracker.name)
        return tracker

    def _known(self, tracker: str) -> str | None:
        """The tracker's identifier of the run; None for a new run."""
        return _names(self.run_dir).get(tracker)

    def _note(self, tracker: str, name: str) -> None:
        write_json(self.run_dir / TRACKER_RUNS, {**_names(self.run_dir), tracker: name})


def _names(run_dir: Path) -> dict[str, str]:
    """The run's names by tracker."""
    path = run_dir / TRACKER_RUNS
    return read_json(path, "remove it, and trackers begin a new curve") if path.exists() else {}


def default_name(run_dir: Path, config: Mapping[str, object]) -> str:
    """exp_name/run_count, or exp_name where the run has no folder of its own below it."""
    experiment, count = config.get("exp_name", run_dir.name), config.get("run_count", ".")
    return str(experiment) if count in (".", None) else f"{experiment}/{count}"


def identity(run_dir: Path) -> str:
    """Kept in the run directory: a resumed run continues its curve, one that starts again (overwrite=true) has another.

    On the old curve, wandb would drop every step that it had already seen.
    """
    noted = run_dir / TRACKER_ID
    if not noted.exists():
        replace_text(noted, secrets.token_hex(8))
    return noted.read_text(encoding="utf-8")


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Flattens a config to {dotted key: value}, with lists as text."""
    if not isinstance(tree, Mapping):
        return {prefix: tree if isinstance(tree, bool | int | float | str) else str(tree)}
    found: dict[str, object] = {}
    for name, value in tree.items():
        found.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found
