"""A listwise reranker's order of a hundred passages: read off logits in one pass a window, or written out.

python -m benchmarks.listwise
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Side, measure, require_same
from benchmarks.workloads import language_model, long_lists

FIRST_TOKEN, CONSTRAINED, GENERATE = "first_token", "constrained", "generate"
PASSAGE_TOKENS = 64  # about a passage of MS MARCO


def benchmark(options: Options) -> Report:
    passages, window, stride = (8, 4, 2) if options.quick else (100, 20, 10)
    work = long_lists(4, passages)
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        overrides = [
            f"model.name_or_path={language_model(Path(name), tiny=options.quick)}",
            f"model.window={window}",
            f"model.stride={stride}",
            f"model.max_passage_tokens={PASSAGE_TOKENS}",
        ]
        sides = [
            Side(decode, ours.listwise_update, {"overrides": overrides, "rows": work.rows, "decode": decode})
            for decode in (FIRST_TOKEN, CONSTRAINED, GENERATE)
        ]
        found = measure(sides, options.updates or (1 if options.quick else 5), options.threads, options.isolated)
    # what an untrained model writes freely is no permutation; held to one, it begins with the largest logit
    require_same(found[FIRST_TOKEN], found[CONSTRAINED])
    return Report(
        "listwise",
        f"One query's {passages} passages of at most {PASSAGE_TOKENS} tokens from {work.origin}, window {window}, "
        f"stride {stride}; a random Llama of 19 M parameters in float32, which writes as many tokens as a whole answer "
        "has. The value is the place of the passage that the first window puts first.",
        [row(side) for side in found.values()],
        [
            Goal("first token against writing freely", ratio(found[GENERATE], found[FIRST_TOKEN]), 3.0, unit=" x"),
            Goal("first token against a held answer", ratio(found[CONSTRAINED], found[FIRST_TOKEN]), 1.5, unit=" x"),
        ],
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.listwise"), load()
    publish(benchmark(chosen), chosen, before)
