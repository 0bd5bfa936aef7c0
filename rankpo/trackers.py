"""Weights & Biases and TensorBoard, where a run's metrics also go if `tracker=` says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankpo.config_errors import ConfigError

Tracker = Callable[[int, Mapping[str, float]], None]


def open_tracker(settings: Mapping[str, Any], run_dir: Path, config: Mapping[str, Any]) -> Tracker | None:
    """A function that takes (step, metrics), and (-1, {}) at the end."""
    name = settings.get("name")
    if name is None:
        return None
    if name == "wandb":
        return _wandb(settings, run_dir, config)
    if name == "tensorboard":
        return _tensorboard(run_dir)
    raise ConfigError([f"tracker.name must be one of wandb, tensorboard, null, got {name!r}"])


def _wandb(settings: Mapping[str, Any], run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    import xxhash

    mode = settings.get("mode", "online")
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError([f"tracker.mode must be one of online, offline, disabled, got {mode!r}"])
    if mode == "online" and not os.environ.get("WANDB_API_KEY") and not (Path.home() / ".netrc").exists():
        raise ConfigError(["tracker=wandb has no key: set WANDB_API_KEY, or tracker.mode=offline"])
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(["tracker=wandb needs wandb: pip install 'rankpo[wandb]'"]) from error
    # the id comes from the directory, so that a resumed run continues its curve
    identity = xxhash.xxh3_64_hexdigest(str(run_dir.resolve()).encode())
    run = wandb.init(
        project=settings.get("project", "rankpo"),
        name=run_dir.name,
        id=identity,
        resume="allow",
        mode=mode,
        dir=str(run_dir),
        config=dict(config),
    )

    def send(step: int, metrics: Mapping[str, float]) -> None:
        run.finish() if step < 0 else run.log(dict(metrics), step=step)

    return send


def _tensorboard(run_dir: Path) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(["tracker=tensorboard needs tensorboard: pip install 'rankpo[tensorboard]'"]) from error
    writer = SummaryWriter(str(run_dir / "tensorboard"))

    def send(step: int, metrics: Mapping[str, float]) -> None:
        if step < 0:
            writer.close()
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return send
