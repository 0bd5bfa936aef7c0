"""Hard negatives of many queries from many passages: memory and time of task=mine behind the encoder.

    python -m benchmarks.mining

The vectors are random and stand in the cache of embeddings before the task starts, so that no encoder is measured. All the
rest is the product's: reading, the index, the search, exclusion, draws, statistics and files, in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.report import Goal, Options, Report, load, parse, publish

WORDS = [f"word{number}" for number in range(5000)]
DIM, PASSAGE_WORDS, QUERY_WORDS = 384, 55, 8
MOST_GB = 4.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Size:
    """passages, queries: their numbers. lists, training: of the index (faiss.num_lists, faiss.train_rows)."""

    passages: int
    queries: int
    lists: int
    training: int


REAL = Size(passages=1_000_000, queries=100_000, lists=512, training=20_000)
QUICK = Size(passages=3000, queries=200, lists=16, training=3000)


def overrides(folder: Path, size: Size) -> list[str]:
    """The command, with an approximate index at the real size: exact search of it is 77 TFLOP."""
    index = ["mining.backend=faiss", "mining.faiss.kind=ivf_pq", f"mining.faiss.num_lists={size.lists}",
             f"mining.faiss.train_rows={size.training}", "mining.faiss.num_probes=8"]  # fmt: skip
    return [
        *("task=mine", "mining=positive_aware", "model=tiny_bert", "kind=embedding"),
        *(f"model.random.hidden_size={DIM}", "model.random.num_hidden_layers=1", "datasets=jsonl"),
        *(f"datasets.jsonl.path={folder}/queries.jsonl", f"mining.corpus={folder}/corpus.jsonl"),
        *(f"cache_dir={folder}/cache", f"run_dir={folder}/mined", f"task.output={folder}/mined/mined.jsonl"),
        *(index if size is not QUICK else []),
    ]


def write_texts(folder: Path, size: Size) -> None:
    """Passages of 55 words, and queries of 8 words with one of the passages as positive."""
    draw = random.Random(0)
    chosen = dict.fromkeys(draw.sample(range(size.passages), size.queries), "")
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(size.passages):
            text = f"passage {number} {' '.join(draw.choices(WORDS, k=PASSAGE_WORDS))}"
            file.write(json.dumps({"_id": f"p{number}", "text": text}) + "\n")
            if number in chosen:
                chosen[number] = text
    with (folder / "queries.jsonl").open("w") as file:
        for number, positive in enumerate(chosen.values()):
            query = f"query {number} {' '.join(draw.choices(WORDS, k=QUERY_WORDS))}"
            file.write(json.dumps({"query": query, "positives": [positive]}) + "\n")


def write_vectors(folder: Path, size: Size) -> None:
    """Fills the cache of embeddings: a query's vector is its positive's with noise, cosine .7."""
    from rankpo.config.compose import compose
    from rankpo.mining.data import read
    from rankpo.models.load import ignore
    from rankpo.retrieval.corpus import open_source
    from rankpo.retrieval.embeddings import TextList, describe_encoding, write_folder
    from rankpo.tasks.models import build_model
    from rankpo.tasks.seeds import seed_everything

    experiment = compose(overrides(folder, size))
    data = read(experiment.datasets, open_source(f"{folder}/corpus.jsonl", "passage", []))
    seed_everything(experiment.seed)
    model = build_model(experiment.model, experiment.explicit, ignore)
    generator = np.random.default_rng(0)
    positives = np.array([query.positives[0] for query in data.queries])
    of_positives = np.zeros((size.passages, DIM), dtype=np.float16)
    done = 0

    def passages(count: int) -> np.ndarray:
        nonlocal done
        vectors = _unit(generator.standard_normal((count, DIM), dtype=np.float32))
        of_positives[done : done + count] = vectors
        done += count
        return vectors

    def queries(count: int) -> np.ndarray:
        nonlocal done
        noise = _unit(generator.standard_normal((count, DIM), dtype=np.float32))
        vectors = _unit(of_positives[positives[done : done + count]].astype(np.float32) + noise)
        done += count
        return vectors

    asked = TextList([str(number) for number in range(size.queries)], [query.text for query in data.queries])
    for texts, role, vectors in ((TextList(data.ids, data.texts), "passage", passages), (asked, "query", queries)):
        done = 0
        encoding = describe_encoding(model, texts, role)
        write_folder(folder / "cache" / "embeddings" / encoding.key, encoding, vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass
class Mined:
    """What a start of the task took. peak: GB of the resident memory of the largest process. own: GB of it that are not
    mapped files."""

    seconds: float
    cpu: float
    peak: float
    own: float
    said: str


def mine(folder: Path, size: Size, processes: int) -> Mined:
    """Starts the task. Raises RuntimeError if it fails."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    command = [*launcher, str(ROOT / "launch.py"), *overrides(folder, size), "overwrite=true"]
    with (
        (folder / "said").open("w") as said,
        Popen(command, env=environment, cwd=ROOT, stdout=said, stderr=said) as running,
    ):
        peak = own = cpu = 0.0
        while running.poll() is None:
            seen = [found for process in _family(running.pid) if (found := _usage(process)) is not None]
            peak, own = max([peak, *(item[0] for item in seen)]), max([own, *(item[1] for item in seen)])
            cpu = max(cpu, sum(item[2] for item in seen))
            time.sleep(0.05 if size is QUICK else 0.5)
    printed = (folder / "said").read_text()
    if running.returncode:
        raise RuntimeError(printed)
    return Mined(time.perf_counter() - began, cpu, peak / 1e9, own / 1e9, printed)


def _family(pid: int) -> Iterator[psutil.Process]:
    try:
        process = psutil.Process(pid)
        yield from [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def _usage(process: psutil.Process) -> tuple[float, float, float] | None:
    """Resident bytes, those without mapped files, and CPU seconds; None for a process that has ended."""
    try:
        memory, times = process.memory_info(), process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return memory.rss, memory.rss - memory.shared, times.user + times.system


def benchmark(options: Options) -> Report:
    return report(QUICK, (1,)) if options.quick else report(REAL, (1, 2))


def report(size: Size, starts: Sequence[int]) -> Report:
    """starts: the numbers of processes of one start after the other."""
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        folder = Path(name)
        write_texts(folder, size)
        write_vectors(folder, size)
        found = {count: mine(folder, size, count) for count in starts}
        written = sum(1 for _ in (folder / "mined" / "mined.jsonl").open())
    if any("encoding" in item.said for item in found.values()):
        raise RuntimeError("the task did not find the vectors in its cache")
    rows = [
        {"side": f"{count} processes" if count > 1 else "one process", "s": item.seconds, "CPU s": item.cpu,
         "queries/CPU s": size.queries / item.cpu, "peak GB of a process": item.peak, "without mapped files": item.own}
        for count, item in found.items()
    ]  # fmt: skip
    goals = [
        Goal(f"peak memory of a process, {row['side']}", item.peak, MOST_GB, upper=True, unit=" GB")
        for row, item in zip(rows, found.values(), strict=True)
    ]
    goals.append(Goal("share of the queries with negatives", written / size.queries, 1.0))
    recall = [line for item in found.values() for line in item.said.splitlines() if "recall@" in line]
    return Report(
        "mining",
        f"{size.queries:,} queries, each with its positive among {size.passages:,} passages of {PASSAGE_WORDS} words, random "
        f"vectors of {DIM} dimensions, 100 candidates and 10 negatives of each; "
        + (
            "exact search."
            if size is QUICK
            else f"ivf_pq with {size.lists} lists. A second start finds the index of the first."
        ),
        rows,
        goals,
        recall[:1],
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.mining"), load()
    publish(benchmark(chosen), chosen, before)
