"""Sweeps for tests: launch.py with -m, in this process."""

from __future__ import annotations

import runpy
import sys

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.global_hydra import GlobalHydra

from rankpo.sweeps import folder
from tests.runs import ROOT

JOBS = ("loss=rankpo", "model=tiny_bert", "datasets=[toy_pairs]", "trainer.max_steps=2")


def swept(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit code of `launch.py -m …`."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch.py"), "-m", *arguments])
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(folder, "_folders", [])
    GlobalHydra.instance().clear()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
    return end.value.code
