"""A contrastive update of a sparse model with its regularisation, and sentence-transformers' SparseEncoder.

python -m benchmarks.sparse
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, peers
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Measured, Side, measure, require_same
from benchmarks.workloads import Row, masked_minilm, web_search, write_contrastive

OURS, OURS_CACHED, PEER = "ours, graph kept", "ours, gradient cache", "sentence-transformers SparseEncoder"
TEMPERATURE = 20.0
QUERY_WEIGHT, DOCUMENT_WEIGHT = 5e-4, 3e-4


def benchmark(options: Options) -> Report:
    updates, batch_size, length = (2, 2, 24) if options.quick else (3, 4, 128)
    work = web_search(updates * batch_size)
    found = compare(work.rows, batch_size, length, options, options.updates or (1 if options.quick else 2))
    return Report(
        "sparse",
        f"{batch_size} queries x (1 + 5) candidates per update from {work.origin}, at most {length} tokens, MiniLM with "
        "a masked-language head over 30,522 entries in float32, InfoNCE over all candidates with FLOPS terms.",
        [row(side) for side in found.values()],
        goals(found),
    )


def compare(
    rows: Sequence[Row], batch_size: int, length: int, options: Options, updates: int
) -> Mapping[str, Measured]:
    """Ours and sentence-transformers on the same rows; their losses are the same or this raises."""
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        weights = masked_minilm(Path(name), tiny=options.quick)
        data = write_contrastive(Path(name) / "rows.jsonl", rows)
        overrides = [
            "model=base",
            "kind=sparse",
            f"model.name_or_path={weights}",
            f"model.query_max_length={length}",
            f"model.passage_max_length={length}",
            f"model.regularizer.query_weight={QUERY_WEIGHT}",
            f"model.regularizer.document_weight={DOCUMENT_WEIGHT}",
            "model.regularizer.warmup=0",
            f"trainer.batch_size={batch_size}",
            f"dataloader.num_negatives={len(rows[0].candidates) - 1}",
            *ours.SAME_AS_PEERS,
            f"loss.temperature={TEMPERATURE}",
        ]
        sides = [
            Side(title, ours.trainer_update, {"overrides": [*overrides, f"trainer.max_tokens={budget}"], "data": data})
            for title, budget in ((OURS, 1_000_000), (OURS_CACHED, 64 if options.quick else 2048))
        ]
        sides.append(
            Side(
                PEER,
                peers.sparse_encoder_update,
                {
                    "folder": weights,
                    "rows": rows,
                    "batch_size": batch_size,
                    "max_length": length,
                    "scale": 1 / TEMPERATURE,
                    "weights": (QUERY_WEIGHT, DOCUMENT_WEIGHT),
                },
            )
        )
        found = measure(sides, updates, options.threads, options.isolated)
    for title in list(found)[1:]:
        require_same(found[OURS], found[title])
    return found


def goals(found: Mapping[str, Measured]) -> list[Goal]:
    made = [
        Goal("update, graph kept", ratio(found[PEER], found[OURS]), 2.0, unit=" x"),
        Goal("update, gradient cache", ratio(found[PEER], found[OURS_CACHED]), 1.5, unit=" x"),
    ]
    mine, peer = found[OURS].peak, found[PEER].peak
    if mine is not None and peer is not None:
        made.append(Goal("peak memory of ours, half the peer's as the goal", mine, peer / 2, True, " GB"))
    return made


if __name__ == "__main__":
    chosen, before = parse("benchmarks.sparse"), load()
    publish(benchmark(chosen), chosen, before)
