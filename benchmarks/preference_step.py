"""A preference update on long documents: ours, the padded loop with the same loss, and sentence-transformers.

    python -m benchmarks.preference_step

sentence-transformers has no loss of this kind; beside its cached MultipleNegativesRankingLoss, which needs least time
and memory of its losses here, stands our InfoNCE on the same pairs, so that both print the same loss.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, peers
from benchmarks.arithmetic import matrix_products
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Side, measure, require_same
from benchmarks.workloads import Row, llama, long_pairs, write_contrastive, write_pairs

BETA, TEMPERATURE = 2.0, 0.1
QUERY_LENGTH, PASSAGE_LENGTH = 1280, 4096
MAX_TOKENS = 4096  # a pair with its query is one micro-batch: the least memory


def benchmark(options: Options) -> Report:
    pairs, batch_size = (8, 4) if options.quick else (48, 8)
    lengths = (24, 64) if options.quick else (QUERY_LENGTH, PASSAGE_LENGTH)
    work = long_pairs(pairs)
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        folder = Path(name)
        sides = make_sides(folder, llama(folder, tiny=options.quick), work.rows, batch_size, *lengths)
        sides.append(Side("2048³ float32 products", matrix_products, {"count": 1 if options.quick else 20}))
        found = measure(sides, options.updates or (1 if options.quick else 2), options.threads, options.isolated)
    mine, naive, mine_in_batch, theirs, products = (found[side.name] for side in sides)
    require_same(mine, naive)
    require_same(mine_in_batch, theirs)
    goals = [
        Goal("ours against the padded loop", ratio(naive, mine), 3.9, unit=" x"),
        Goal(
            "ours against sentence-transformers, InfoNCE on the same rows", ratio(theirs, mine_in_batch), 1.0, unit=" x"
        ),
        Goal("useful arithmetic of the matrix-product rate", 100 * mine.rate / products.rate, 70, unit=" %"),
    ]
    if mine.peak is not None:
        goals.append(Goal("peak memory of ours", mine.peak, 2.0, upper=True, unit=" GB"))
    tokens = sum(outcome.tokens or 0 for outcome in mine.outcomes) / len(mine.outcomes)
    return Report(
        "preference_step",
        f"{batch_size} pairs per update from {work.origin}, query up to {lengths[0]} tokens, passages up to "
        f"{lengths[1]}, {tokens:,.0f} tokens per update, a random Llama in float32.",
        [
            row(side, **({"GFLOP/s": side.rate} if side in (mine, mine_in_batch, products) else {}))
            for side in found.values()
        ],
        goals,
    )


def make_sides(
    folder: Path, weights: str, rows: list[Row], batch_size: int, query_length: int, passage_length: int
) -> list[Side]:
    model = [
        "model=llama",
        "kind=embedding",
        f"model.name_or_path={weights}",
        f"model.query_max_length={query_length}",
        f"model.passage_max_length={passage_length}",
        f"trainer.batch_size={batch_size}",
        f"trainer.max_tokens={MAX_TOKENS}",
    ]
    preference = ["loss=rankpo", f"loss.beta={BETA}", f"loss.temperature={TEMPERATURE}", "loss.reference_free=true"]
    pairs = write_pairs(folder / "pairs.jsonl", rows)
    in_batch = write_contrastive(folder / "contrastive.jsonl", rows)
    lengths = {"query_length": query_length, "passage_length": passage_length}
    common = {"folder": weights, "rows": rows, "batch_size": batch_size, **lengths}
    return [
        Side("ours, RankPO", ours.trainer_update, {"overrides": [*model, *preference], "data": pairs}),
        Side("padded loop, RankPO", peers.padded_preference, {**common, "beta": BETA, "temperature": TEMPERATURE}),
        Side("ours, InfoNCE", ours.trainer_update, {"overrides": [*model, *ours.SAME_AS_PEERS], "data": in_batch}),
        Side(
            "sentence-transformers, cached InfoNCE by 1",
            peers.sentence_transformers_update,
            {**common, "pooling": "last", "mini_batch": 1},
        ),
    ]


if __name__ == "__main__":
    chosen, before = parse("benchmarks.preference_step"), load()
    publish(benchmark(chosen), chosen, before)
