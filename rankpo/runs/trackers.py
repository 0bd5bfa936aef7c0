"""Weights & Biases and TensorBoard, where a run's metrics also go if `tracker=` says so."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError
from rankpo.runs.folder import TRACKER_ID

Tracker = Callable[[int, Mapping[str, float]], None]


def tracker_of(
    settings: Mapping[str, Any], run_dir: Path, config: Mapping[str, Any]
) -> Callable[[int], Tracker] | None:
    """What opens the tracker when training begins; it is given the updates already done.

    The tracker takes (step, metrics), and (-1, {}) at the end. Raises ConfigError, at once, for one that cannot work.
    """
    name = settings.get("name")
    if name is None:
        return None
    if name == "wandb":
        return _wandb(settings, run_dir, config)
    if name == "tensorboard":
        return _tensorboard(run_dir)
    raise ConfigError([f"tracker.name must be one of wandb, tensorboard, null, got {name!r}"])


def _wandb(settings: Mapping[str, Any], run_dir: Path, config: Mapping[str, Any]) -> Callable[[int], Tracker]:
    mode = settings.get("mode", "online")
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError([f"tracker.mode must be one of online, offline, disabled, got {mode!r}"])
    if mode == "online" and not os.environ.get("WANDB_API_KEY") and not (Path.home() / ".netrc").exists():
        raise ConfigError(["tracker=wandb has no key: set WANDB_API_KEY, or tracker.mode=offline"])
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(["tracker=wandb needs wandb: pip install 'rankpo[wandb]'"]) from error

    def start(first_step: int) -> Tracker:
        run = wandb.init(
            project=settings.get("project", "rankpo"),
            name=run_dir.name,
            id=_identity(run_dir),
            resume="allow",
            mode=mode,
            dir=str(run_dir),
            config=dict(config),
        )

        def send(step: int, metrics: Mapping[str, float]) -> None:
            run.finish() if step < 0 else run.log(dict(metrics), step=step)

        return send

    return start


def _identity(run_dir: Path) -> str:
    """Kept in the run directory: a resumed run continues its curve, one that starts again (overwrite=true) has another.

    On the old curve, wandb would drop every step that it had already seen.
    """
    noted = run_dir / TRACKER_ID
    if not noted.exists():
        noted.write_text(secrets.token_hex(8))
    return noted.read_text()


def _tensorboard(run_dir: Path) -> Callable[[int], Tracker]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(["tracker=tensorboard needs tensorboard: pip install 'rankpo[tensorboard]'"]) from error

    def start(first_step: int) -> Tracker:
        # what an interrupted run wrote after its last checkpoint is written again
        writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else 0)

        def send(step: int, metrics: Mapping[str, float]) -> None:
            if step < 0:
                writer.close()
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        return send

    return start
