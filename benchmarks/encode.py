"""Encoding a corpus of mixed lengths: `model.encode` and `SentenceTransformer.encode`.

python -m benchmarks.encode
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, peers
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Side, measure, require_same
from benchmarks.workloads import minilm, mixed_texts

LENGTH = 256  # model=minilm's own, and that with which the model was published


def benchmark(options: Options) -> Report:
    work = mixed_texts(12 if options.quick else 800)
    texts = [item.query for item in work.rows]
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        common = {"folder": minilm(Path(name), tiny=options.quick), "texts": texts, "max_length": LENGTH}
        sides = [
            Side("ours", ours.encode_update, common),
            Side("sentence-transformers", peers.sentence_transformers_encode, common),
        ]
        found = measure(sides, options.updates or (1 if options.quick else 5), options.threads, options.isolated)
    mine, theirs = (found[side.name] for side in sides)
    require_same(mine, theirs)
    return Report(
        "encode",
        f"{len(texts)} distinct texts, {work.origin}, at most {LENGTH} tokens, MiniLM in float32. The value is the "
        "mean cosine of neighbours.",
        [row(side, **{"texts/s": len(texts) / side.median}) for side in found.values()],
        [Goal("ours against sentence-transformers", ratio(theirs, mine), 1.3, unit=" x")],
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.encode"), load()
    publish(benchmark(chosen), chosen, before)
