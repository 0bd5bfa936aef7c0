"""An in-batch contrastive update on texts of mixed lengths, plain and with the gradient cache, and their peers.

python -m benchmarks.contrastive_step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, peers
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Measured, Side, measure, require_same
from benchmarks.workloads import Row, minilm, web_search, write_contrastive

PLAIN_TOKENS = 1_000_000  # more than an update has: its graph is kept
CACHED_TOKENS = 1024  # as fast as 4,096 on a CPU, with less memory
OURS, OURS_CACHED = "ours, graph kept", "ours, gradient cache"
PEER, PEER_CACHED = "sentence-transformers", "sentence-transformers, cached by {}"
MINI_BATCHES = (32, 1)  # its default, and what needs least memory and padding


def benchmark(options: Options) -> Report:
    updates, batch_size, length = (2, 3, 24) if options.quick else (4, 16, 512)
    work = web_search(updates * batch_size)
    found = compare(work.rows, batch_size, length, options, options.updates or (1 if options.quick else 3))
    return Report(
        "contrastive_step",
        f"{batch_size} queries x (1 + 5) candidates per update from {work.origin}, at most {length} tokens, "
        f"{tokens_per_update(found):,.0f} tokens per update, MiniLM in float32, InfoNCE over all candidates.",
        [row(side) for side in found.values()],
        goals(found, plain=1.7, cached=1.8),
    )


def compare(
    rows: Sequence[Row], batch_size: int, length: int, options: Options, updates: int
) -> Mapping[str, Measured]:
    """Ours and sentence-transformers, plain and cached, on the same rows; their losses are the same or this raises."""
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        weights = minilm(Path(name), tiny=options.quick)
        data = write_contrastive(Path(name) / "rows.jsonl", rows)
        overrides = [
            "model=minilm",
            f"model.name_or_path={weights}",
            f"model.query_max_length={length}",
            f"model.passage_max_length={length}",
            f"trainer.batch_size={batch_size}",
            f"dataloader.num_negatives={len(rows[0].candidates) - 1}",
            *ours.SAME_AS_PEERS,
        ]
        common = {"folder": weights, "rows": rows, "batch_size": batch_size, "pooling": "mean"}
        lengths = {"query_length": length, "passage_length": length}
        sides = [
            Side(title, ours.trainer_update, {"overrides": [*overrides, f"trainer.max_tokens={budget}"], "data": data})
            for title, budget in ((OURS, PLAIN_TOKENS), (OURS_CACHED, cached_budget(options)))
        ]
        sides.append(Side(PEER, peers.sentence_transformers_update, {**common, **lengths}))
        sides += [
            Side(
                PEER_CACHED.format(size),
                peers.sentence_transformers_update,
                {**common, **lengths, "mini_batch": size},
            )
            for size in MINI_BATCHES
        ]
        found = measure(sides, updates, options.threads, options.isolated)
    for title in list(found)[1:]:
        require_same(found[OURS], found[title])
    return found


def cached_budget(options: Options) -> int:
    """trainer.max_tokens of the cached side; small enough in a quick run that there is something to cache."""
    return 64 if options.quick else CACHED_TOKENS


def goals(found: Mapping[str, Measured], plain: float, cached: float) -> list[Goal]:
    """Speed against the plain and the cached form as they come, and against the leanest cached form; memory."""
    default, leanest = (found[PEER_CACHED.format(size)] for size in MINI_BATCHES)
    mine = found[OURS_CACHED]
    made = [
        Goal("plain loss", ratio(found[PEER], found[OURS]), plain, unit=" x"),
        Goal(f"cached loss, against {default.name} (its default)", ratio(default, mine), cached, unit=" x"),
        Goal(f"cached loss, against {leanest.name} (its leanest)", ratio(leanest, mine), 1.0, unit=" x"),
    ]
    if mine.peak is not None and leanest.peak is not None:
        made.append(Goal("peak memory of ours cached, its leanest as the goal", mine.peak, leanest.peak, True, " GB"))
    return made


def tokens_per_update(found: Mapping[str, Measured]) -> float:
    counts = [outcome.tokens or 0 for outcome in found[OURS].outcomes]
    return sum(counts) / len(counts)


if __name__ == "__main__":
    chosen, before = parse("benchmarks.contrastive_step"), load()
    publish(benchmark(chosen), chosen, before)
