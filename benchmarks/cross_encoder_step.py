"""An update of a cross-encoder on pairs of mixed lengths, and sentence-transformers' with the same loss.

python -m benchmarks.cross_encoder_step
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, peers
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Side, measure, require_same
from benchmarks.workloads import cross_encoder, web_search, write_contrastive

MAX_TOKENS = 4096  # of a micro-batch of ours; the peer's batch is whole


def benchmark(options: Options) -> Report:
    updates, batch_size, length = (2, 2, 32) if options.quick else (4, 16, 512)
    work = web_search(updates * batch_size)
    candidates = len(work.rows[0].candidates)
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        weights = cross_encoder(Path(name), tiny=options.quick)
        overrides = [
            "model=base",
            "kind=reranker",
            f"model.name_or_path={weights}",
            f"model.max_length={length}",
            "loss=pointwise_bce",
            f"trainer.batch_size={batch_size}",
            f"trainer.max_tokens={MAX_TOKENS}",
        ]
        data = write_contrastive(Path(name) / "rows.jsonl", work.rows)
        peer = {"folder": weights, "rows": work.rows, "batch_size": batch_size, "max_length": length}
        sides = [
            Side("ours", ours.trainer_update, {"overrides": overrides, "data": data}),
            Side("sentence-transformers", peers.cross_encoder_update, peer),
        ]
        found = measure(sides, options.updates or (1 if options.quick else 3), options.threads, options.isolated)
    mine, theirs = (found[side.name] for side in sides)
    require_same(mine, theirs)
    tokens = [outcome.tokens or 0 for outcome in mine.outcomes]
    goals = [Goal("ours against sentence-transformers", ratio(theirs, mine), 1.5, unit=" x")]
    if mine.peak is not None and theirs.peak is not None:
        goals.append(Goal("peak memory of ours, its as the goal", mine.peak, theirs.peak, True, " GB"))
    return Report(
        "cross_encoder_step",
        f"{batch_size} queries x {candidates} documents per update from {work.origin}, at most {length} tokens a pair, "
        f"{sum(tokens) / len(tokens):,.0f} tokens per update, MiniLM with a new head in float32, binary cross-entropy.",
        [row(side) for side in found.values()],
        goals,
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.cross_encoder_step"), load()
    publish(benchmark(chosen), chosen, before)
