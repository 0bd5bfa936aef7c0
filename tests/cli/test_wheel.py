"""The wheel works in a folder of its own, without the checkout: its contents, and the project of `rankpo init`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.starts import PATIENCE, ROOT

SOURCES = ("rankpo", "config", "accelerate_config", "hydra_plugins")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
ALONE = ("--no-deps", "--no-index", "--quiet")
SMALL = ("model=tiny_bert", "trainer.max_steps=1")


def called(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command says. Fails unless it succeeds."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, in which an earlier build has left a file that the sources have no more."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    stale = folder / "source" / "build" / "lib" / "rankpo" / "removed.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    called(*PIP, "wheel", *ALONE, "--no-build-isolation", "-w", folder, folder / "source", folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder of packages in front of this environment's own."""
    folder = tmp_path_factory.mktemp("site")
    called(*PIP, "install", *ALONE, "--no-compile", "--target", folder, wheel, folder=folder)
    return folder


@pytest.fixture
def rankpo(installed):
    """Runs a command line of `rankpo`, or of what starts it, in a folder; gives what it said."""

    def run(folder: Path, line: str, *more: str) -> str:
        program, *words = [*shlex.split(line), *more]
        start = [installed / "bin" / "rankpo"] if program == "rankpo" else [sys.executable, "-m", program]
        return called(*start, *words, folder=folder, PYTHONPATH=str(installed), OMP_NUM_THREADS="1")

    return run


def test_everything_that_a_run_reads_is_inside(wheel):
    packed = set(ZipFile(wheel).namelist())
    moved = {"config": "rankpo/_config", "accelerate_config": "rankpo/_accelerate_config"}
    for name in SOURCES:
        for path in (ROOT / name).rglob("*.*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = f"{moved.get(name, name)}/{path.relative_to(ROOT / name).as_posix()}"
                assert inside in packed, inside
    assert "rankpo/removed.py" not in packed
    assert {name.split("/")[0] for name in packed if "dist-info" not in name} == {"rankpo", "hydra_plugins"}


def test_a_project_runs_as_its_readme_says(rankpo, installed, tmp_path):
    """Its four commands, with a model that is small; then a sweep whose jobs are launches of their own."""
    assert "project/README.md has four commands" in rankpo(tmp_path, "rankpo init project")
    folder = tmp_path / "project"
    (block,) = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    look, train, evaluate, report = block.splitlines()
    assert "16 items an epoch" in rankpo(folder, look)
    said = rankpo(folder, train, *SMALL)
    assert "step 1/1" in said and (folder / "runs" / "first" / "FINAL" / "model.safetensors").is_file()
    assert "jsonl/ndcg@10" in rankpo(folder, evaluate, *SMALL)
    rankpo(folder, report)
    assert "<html" in (folder / "runs" / "first" / "report.html").read_text()
    sweep = ("seed=1", "exp_name=sweep", "hydra/launcher=rankpo_accelerate", "-m")
    assert "finished after" in rankpo(folder, train, *SMALL, *sweep)
    (final,) = (folder / "runs" / "sweep").glob("*/FINAL")
    assert (final / "model.safetensors").is_file()
    places = rankpo(folder, "rankpo env")
    assert f"configs: {installed}/rankpo/_config" in places and str(ROOT) not in places.replace(sys.executable, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2 -m rankpo",
        "accelerate.commands.launch --num_processes 1 --cpu -m rankpo",
        "rankpo",
    ],
)
def test_launchers_start_the_module(rankpo, tmp_path, launcher):
    options = "datasets=[toy_contrastive] loss=contrastive trainer.batch_size=4 exp_name=run"
    line = launcher if launcher != "rankpo" else "rankpo.__main__"
    assert "step 1/1" in rankpo(tmp_path, f"{line} train {options}", *SMALL)
    assert (tmp_path / "runs" / "run" / "FINAL" / "model.safetensors").is_file()
