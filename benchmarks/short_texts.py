"""The contrastive update on short and very uneven texts: titles beside profiles, 5 to 300 tokens.

python -m benchmarks.short_texts
"""

from __future__ import annotations

from benchmarks.contrastive_step import compare, goals, tokens_per_update
from benchmarks.report import Options, Report, load, parse, publish, row
from benchmarks.workloads import job_posts

LENGTH = 300


def benchmark(options: Options) -> Report:
    updates, batch_size = (2, 3) if options.quick else (4, 64)
    work = job_posts(updates * batch_size)
    length = 48 if options.quick else LENGTH
    found = compare(work.rows, batch_size, length, options, options.updates or (1 if options.quick else 5))
    return Report(
        "short_texts",
        f"{batch_size} queries x (1 + 5) candidates per update from {work.origin}, "
        f"{tokens_per_update(found):,.0f} tokens per update, MiniLM in float32, InfoNCE over all candidates. Equal "
        "texts of an update are encoded once by ours.",
        [row(side) for side in found.values()],
        goals(found, plain=2.5, cached=2.5),
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.short_texts"), load()
    publish(benchmark(chosen), chosen, before)
