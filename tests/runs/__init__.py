"""Small complete runs for tests: a config composed as launch.py does it, in this process or in several."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from rankpo.config.compose import compose
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.assemble import assemble
from tests.starts import ROOT as ROOT
from tests.starts import Started

TINY = (
    "model=tiny_bert",
    "kind=embedding",  # losses on pairs and lists would choose another one
    "model.random.num_hidden_layers=1",
    "model.query_max_length=64",
    "model.passage_max_length=96",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",  # Adam divides by the gradient: rounding where it is nearly 0 would show in the weights
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
CONTRASTIVE = (*TINY, "loss=contrastive", "loss.temperature=0.1", "datasets=[toy_contrastive]")
RANKPO = (*TINY, "loss=rankpo", "datasets=[toy_pairs]")


def reset() -> None:
    """Forgets the Accelerator of an earlier run in this process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def trainer_of(*overrides: str):
    """A trainer in this process, ready to train, silent."""
    reset()
    from rankpo.runs import processes

    experiment = compose(overrides)
    accelerator = processes.make_accelerator(experiment.settings.precision)
    return assemble(experiment, accelerator, MetricsLogger(main=False))


def train(*overrides: str, memory_plan: bool = False):
    """Runs the task of the overrides in this process, without a memory plan by default; returns the experiment."""
    reset()
    experiment = compose(overrides)
    experiment = replace(experiment, settings=replace(experiment.settings, memory_plan=memory_plan))
    experiment.task(experiment)
    return experiment


def launch(*overrides: str, processes: int = 1) -> subprocess.CompletedProcess:
    """launch.py as a user starts it, with `processes` of them, run to its end."""
    started = Started(*overrides, processes=processes)
    return subprocess.CompletedProcess(["launch.py", *overrides], started.wait(), started.stdout, started.stderr)


def curve(run_dir: Path, name: str = "train/loss") -> list[float]:
    """The values of a metric by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "FINAL" / "model.safetensors")
