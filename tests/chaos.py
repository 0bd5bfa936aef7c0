"""Runs that are killed with all they started, wherever they are, at moments that are counted and not timed.

Where a run is shows in what it opens, renames and enters: a kill has its place in one of these phases.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.starts import Started

EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")  # before the system call
COUNTS = "moments.json"


@dataclass(frozen=True)
class Kill:
    """At the `number`-th moment of a phase, or `delay` seconds after it."""

    phase: str
    number: int
    delay: float


@dataclass
class Moments:
    """Counts the moments of a process until its FINAL stands; the process ends at the one that `kill` names.

    cache, run_dir: as the run's keys of these names.
    """

    cache: Path
    run_dir: Path
    kill: Kill | None
    counts: Counter[str] = field(default_factory=Counter)
    over: bool = False

    def __call__(self) -> None:
        """From now on; called in the process that is to be watched."""
        from rankpo.trainers.basic import BasicTrainer
        from rankpo.trainers.watch import Watch

        os.setsid()
        self.places = {
            f"{self.cache}/text_store": "tokenising",
            f"{self.run_dir}/checkpoints": "saving",
            f"{self.run_dir}/FINAL": "exporting",
        }
        sys.addaudithook(self.audit)
        for (owner, name), phase in {
            (BasicTrainer, "train_step"): "training",
            (Watch, "evaluate"): "evaluating",
        }.items():
            setattr(owner, name, self.entering(getattr(owner, name), phase))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or self.over:
            return
        for place, phase in self.places.items():
            if str(arguments[0]).startswith(place):
                self.count(phase)
        if event == "os.rename" and str(arguments[1]) == f"{self.run_dir}/FINAL":
            self.over = True  # nothing is left to be lost
            (self.cache / COUNTS).write_text(json.dumps(self.counts))

    def entering(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def entered(*arguments: Any) -> Any:
            self.count(phase)
            return method(*arguments)

        return entered

    def count(self, phase: str) -> None:
        self.counts[phase] += 1
        if self.kill is None or (phase, self.counts[phase]) != (self.kill.phase, self.kill.number):
            return
        if self.kill.delay:
            threading.Timer(self.kill.delay, os.killpg, (0, signal.SIGKILL)).start()
        else:
            os.killpg(0, signal.SIGKILL)


def run(overrides: list[str], cache: Path, name: str, kill: Kill | None = None) -> Counter[str]:
    """launch.py with resume=auto, until it ends or is killed; returns its moments where it was not."""
    watch = Moments(cache, cache / name, kill)
    started = Started(*overrides, f"cache_dir={cache}", f"exp_name={name}", "resume=auto", before=watch)
    code = started.wait()
    assert code == (0 if kill is None else -signal.SIGKILL), f"{kill}: {code}\n{started.stderr}"
    return Counter(json.loads((cache / COUNTS).read_text())) if kill is None else Counter()


def plan(seed: int, kills: int, undisturbed: Counter[str]) -> list[Kill]:
    """Random moments in every phase, none so far on that the run could be over before the last of them.

    seed: which phases come first, too. undisturbed: the moments of a whole run. Those of a phase that stands at the
    beginning come first, of the end last.
    """
    draw = random.Random(seed)
    order = ["saving", "training", "exporting", "tokenising", "evaluating"]
    # a store that is whole is opened in at least a quarter of the moments in which it is made
    last = {"tokenising": undisturbed["tokenising"] // 4, "exporting": undisturbed["exporting"]}
    last |= {"saving": 2 * undisturbed["saving"] // undisturbed["training"], "training": 2, "evaluating": 1}
    made = []
    for number in range(kills):
        phase = order[(2 * seed + number) % len(order)]
        # behind the last moment of the export the run is over: no delay there
        delay = 0.0 if phase == "exporting" else draw.choice([0.0, draw.uniform(0.001, 0.02)])
        made.append(Kill(phase, draw.randint(1, last[phase]), delay))
    draw.shuffle(made)
    return sorted(made, key=lambda kill: {"tokenising": 0, "exporting": 2}.get(kill.phase, 1))
