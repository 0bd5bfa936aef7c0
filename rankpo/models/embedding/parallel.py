"""Encoding with several processes of one machine, for users who run without a launcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch import multiprocessing as processes

from rankpo.data.batch import select
from rankpo.data.loaders.planner import deal
from rankpo.types import Sequences

if TYPE_CHECKING:
    from rankpo.models.vectors import GivesVectors

SECONDS_BETWEEN_LOOKS = 0.5  # Polling interval of progress.


@dataclass(frozen=True)
class Work:
    """The work of all processes. shares: rows of the sequences of each process. threads: of all processes together."""

    model: GivesVectors
    sequences: Sequences
    shares: list[np.ndarray]
    devices: list[str]
    threads: int


def encode_in_processes(
    model: GivesVectors,
    sequences: Sequences,
    devices: Sequence[str],
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Returns embeddings [N, D]; one process per device gets an equal share of tokens. A failing process ends all.

    on_progress: called with the number of sequences done since its last call.
    """
    done = torch.zeros(len(devices), dtype=torch.int64).share_memory_()
    output = torch.zeros(len(sequences), model.dim).share_memory_()
    shares = deal(sequences.lengths.numpy(), len(devices))
    home = model.device
    model.to("cpu")
    try:
        context = processes.start_processes(
            _encode_share,
            args=(Work(model, sequences, shares, list(devices), torch.get_num_threads()), output, done),
            nprocs=len(devices),
            join=False,
            start_method="spawn",
        )
        seen, ended = 0, False
        while not ended:
            ended = context.join(timeout=SECONDS_BETWEEN_LOOKS)
            finished = int(done.sum())
            if on_progress is not None:
                on_progress(finished - seen)
            seen = finished
    finally:
        model.to(home)
    return output.clone()


def _encode_share(number: int, work: Work, output: Tensor, done: Tensor) -> None:
    """Encodes the share of process `number`. output, done: shared by all processes."""

    def count(finished: int) -> None:
        done[number] += finished

    if work.devices[number] == "cpu":
        torch.set_num_threads(max(1, work.threads // len(work.devices)))
    rows, model = work.shares[number], work.model.to(work.devices[number])
    output[torch.from_numpy(rows)] = model.encode_sequences(select(work.sequences, rows), count)
