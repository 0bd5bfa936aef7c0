"""All benchmarks, one after the other: `python -m benchmarks`, or `python -m benchmarks --quick` to see that they run."""

from __future__ import annotations

from benchmarks import (
    contrastive_step,
    cross_encoder_step,
    dpo_memory,
    encode,
    late_interaction,
    listwise,
    mining,
    planning,
    preference_step,
    search,
    short_texts,
    sparse,
    startup,
)
from benchmarks.report import load, parse, publish

BENCHMARKS = (
    preference_step,
    contrastive_step,
    short_texts,
    dpo_memory,
    cross_encoder_step,
    late_interaction,
    listwise,
    encode,
    search,
    planning,
    mining,
    sparse,
    startup,
)

if __name__ == "__main__":
    options = parse("benchmarks")
    for module in BENCHMARKS:
        before = load()
        publish(module.benchmark(options), options, before)
