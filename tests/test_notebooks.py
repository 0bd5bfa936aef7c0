"""Notebooks of docs/notebooks run from the first cell to the last, and are kept without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rankpo.config.places import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / name).read_text())["cells"]


def test_there_are_three():
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_have_no_outputs(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name, tmp_path, monkeypatch):
    """In a kernel of its own, with a tiny model of random weights in the place of MiniLM."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.reads((FOLDER / name).read_text(), as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub('model="minilm"', 'model="tiny_bert"', cell.source)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert Path(tmp_path, "runs").is_dir()
