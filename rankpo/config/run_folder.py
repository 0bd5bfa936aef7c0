"""Folder of a run: the resolver of `run_dir`.

New runs are written to `runs/`. Earlier versions wrote runs to the hidden cache folder, and such a run continues there.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

RUNS = "runs"
CACHE = ".cache"  # The default of `cache_dir`, and the folder of the runs of earlier versions.
SWEEP_FILE = "sweep.json"


def runs_of(runs_dir: str | None, cache_dir: str) -> str:
    """The folder of all runs: `runs_dir` if set, else `cache_dir` if it differs from the default, else `runs`."""
    return runs_dir or (RUNS if cache_dir == CACHE else cache_dir)


def run_folder(root: DictConfig) -> str:
    """The folder of a run: runs/EXP_NAME/RUN_COUNT, or the folder in `.cache` if an earlier version started the run."""
    count = str(root.run_count)
    name = str(root.exp_name) if count == "." else f"{root.exp_name}/{count}"  # Messages show paths below it.
    folder = f"{runs_of(root.runs_dir, str(root.cache_dir))}/{name}"
    earlier = f"{CACHE}/{name}"
    if folder != f"{RUNS}/{name}" or root.runs_dir is not None or _began(folder, "config.json"):
        return folder
    goes_on = root.resume == "auto" and _began(earlier, "config.json")
    return earlier if goes_on or _began(earlier, SWEEP_FILE) else folder


def _began(folder: str, name: str) -> bool:
    return (Path(folder) / name).is_file() or (Path(folder) / SWEEP_FILE).is_file()


def _resolve(*, _root_: DictConfig) -> str:
    return run_folder(_root_)


def register() -> None:
    """Registers the resolver `rankpo.run_dir` of config.yaml, which every composition needs."""
    OmegaConf.register_new_resolver("rankpo.run_dir", _resolve, replace=True)
