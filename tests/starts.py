"""launch.py in new processes, forked from one that has imported the libraries: a start does not take seconds of imports.

Each is a process of its own in all else: argv, environment, streams, signals, exit code, process group. What only a
start from nothing shows has tests of its own: test_launch, test_sweep, test_interruption, test_readme, distributed/.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # seconds: for machines of any speed; what works is never so slow
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "hydra._internal.utils",
        "rankpo.config.check",
        "rankpo.tasks.work.train",
        "rankpo.trainers.contrastive",
        "rankpo.trainers.paired_preference",
        "transformers.models.bert.modeling_bert",
        "transformers.models.gpt_neox.modeling_gpt_neox",
        "transformers.models.llama.modeling_llama",
    ]
)


class Started:
    """A program in one process, or in several that work together; in this one's folder. before: called ahead of it."""

    def __init__(
        self,
        *arguments: str,
        processes: int = 1,
        program: Path = ROOT / "launch.py",
        before: Callable[[], None] | None = None,
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="rankpo-start-")
        # kept as torchrun keeps it: the port is taken before anyone is told of it
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None
        self.ranks = [
            FORKS.Process(
                target=_run,
                args=(
                    [str(program), *arguments],
                    self._environment(rank, processes),
                    os.getcwd(),
                    self._outputs(rank),
                    before,
                ),
                daemon=True,
            )
            for rank in range(processes)
        ]
        for process in self.ranks:
            process.start()

    def _environment(self, rank: int, processes: int) -> dict[str, str]:
        if self.store is None:
            return dict(os.environ)
        return {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }

    def _outputs(self, rank: int) -> tuple[str, str]:
        return tuple(f"{self.folder.name}/{rank}.{name}" for name in ("stdout", "stderr"))  # type: ignore[return-value]

    def _said(self, name: str) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(Path(self.folder.name).glob(f"*.{name}")))

    @property
    def stdout(self) -> str:
        """What the ranks have written, one after the other."""
        return self._said("stdout")

    @property
    def stderr(self) -> str:
        return self._said("stderr")

    def until(self, holds: Callable[[], Any]) -> None:
        """Returns once that is so. Fails where a process ends before."""
        ends = time.monotonic() + PATIENCE
        while not holds():
            assert all(process.is_alive() for process in self.ranks), self.stderr
            assert time.monotonic() < ends, self.stderr
            time.sleep(0.005)

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self._pid(rank), number)

    def _pid(self, rank: int) -> int:
        pid = self.ranks[rank].pid
        assert pid is not None
        return pid

    def kill(self) -> None:
        """Ends all at once and without warning."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    def wait(self) -> int:
        """The exit code: 0, or that of the rank that failed first; the others are ended then, as torchrun does."""
        ends = time.monotonic() + PATIENCE
        running = list(self.ranks)
        while running:
            gone = wait([process.sentinel for process in running], max(0.0, ends - time.monotonic()))
            if not gone:
                self.kill()
                raise AssertionError(f"did not end in {PATIENCE:.0f} s:\n{self.stderr}")
            for process in [process for process in running if process.sentinel in gone]:
                process.join()
                running.remove(process)
                if process.exitcode:
                    self.kill()
                    return process.exitcode
        return 0


def _run(
    words: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    outputs: Sequence[str],
    before: Callable[[], None] | None,
) -> None:
    """In the new process: `python PROGRAM …` with files as its streams."""
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)  # as in the tests' own process, whose numbers are compared to the last digit
    os.chdir(folder)
    sys.argv = list(words)
    if before is not None:
        before()
    runpy.run_path(words[0], run_name="__main__")


def waiting_at(step: int, release: Path) -> Callable[[], None]:
    """A `before` with which no run is over too soon for a test that stops it: update `step` waits for a file."""
    return partial(_wait_at, step, release)


def _wait_at(step: int, release: Path) -> None:
    from rankpo.trainers.basic import BasicTrainer

    train_step = BasicTrainer.train_step

    def waiting(self: Any, update: Any) -> None:
        while self.state.step == step and not release.exists():
            time.sleep(0.005)
        train_step(self, update)

    BasicTrainer.train_step = waiting  # type: ignore[method-assign]
