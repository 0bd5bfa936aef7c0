"""Updates of dpo and ra-dpo: memory beside the formulas on whole logits; memory and speed beside TRL's DPOTrainer.

    python -m benchmarks.dpo_memory

TRL's sides need `pip install trl`. A causal model's prompt is long and its completions short: chosen and rejected share
one computation of it here, and are two rows there.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import dpo_sides
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Measured, Side, measure, require_same
from benchmarks.workloads import long_pairs

VOCABULARY, PAIRS, PROMPT, LENGTH = 128_000, 4, 128, 512  # 8 sequences of 512 tokens
LONG_PROMPT_WORDS, COMPLETION_WORDS = 1200, 100
LIVE, STORED = "trainer.reference=live", "trainer.reference=stored"


def benchmark(options: Options) -> Report:
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        rows, goals = _vocabulary(Path(name), options)
        remarks: list[str] = []
        if find_spec("trl") is None:
            remarks.append("TRL's sides were left out: the package trl is not installed (pip install trl)")
        else:
            more = _trl(Path(name), options)
            rows, goals = [*rows, *more[0]], [*goals, *more[1]]
            remarks.append(f"trl {version('trl')}, float32, without gradient checkpointing, as ours")
    return Report(
        "dpo_memory",
        f"Full vocabulary: {PAIRS} pairs, 8 sequences of {LENGTH} tokens, {LENGTH - PROMPT} of them scored, a random "
        f"Llama of 2 layers with V = {VOCABULARY:,}. TRL: {PAIRS} pairs, prompts of {LONG_PROMPT_WORDS} words, "
        f"completions of {COMPLETION_WORDS}, a random Llama of 11 M parameters. All in float32.",
        [row(side) for side in rows],
        goals,
        remarks,
    )


def _vocabulary(folder: Path, options: Options) -> tuple[list[Measured], list[Goal]]:
    """dpo and ra-dpo beside the same formulas on logits of all positions and words."""
    prompt, length, vocabulary = (16, 48, None) if options.quick else (PROMPT, LENGTH, VOCABULARY)
    weights = dpo_sides.write_model(folder / "wide", vocabulary=vocabulary, layers=2, hidden=64, heads=2)
    data = dpo_sides.write_chat(folder / "wide.jsonl", long_pairs(2 * PAIRS).rows, prompt * 2, length * 2)
    lengths = {"max_prompt_length": prompt, "max_length": length}
    model = [*_model(weights), *(f"model.{name}={value}" for name, value in lengths.items())]
    peer = {"folder": weights, "data": str(data), "batch_size": PAIRS, **lengths}
    sides = []
    for loss, more in (("dpo", (LIVE,)), ("ra-dpo", (f"loss.confidence_level={dpo_sides.LEVEL}",))):
        overrides = [f"loss={loss}", *model, *more]
        sides.append(Side(f"ours, {loss}", dpo_sides.ours, {"overrides": overrides, "data": str(data)}))
        sides.append(Side(f"whole logits, {loss}", dpo_sides.full_vocabulary, {**peer, "risk": loss == "ra-dpo"}))
    # one pair of sides after the other: four processes of this size at once would not fit
    found: list[Measured] = []
    for start in range(0, len(sides), 2):
        part = measure(sides[start : start + 2], options.updates or 2, options.threads, options.isolated)
        mine, theirs = part.values()
        # ra-dpo's first update: where policy and reference are equal all words tie, and any of them are the tail
        require_same(mine, theirs, tolerance=1e-4 if start == 0 else 1e-3)
        found += [mine, theirs]
    goals: list[Goal] = []
    for mine, theirs in zip(found[::2], found[1::2], strict=True):
        goals += [
            *_memory(mine, theirs, 0.2),
            Goal(f"{mine.name} against {theirs.name}", ratio(theirs, mine), 1, unit=" x"),
        ]
    return found, goals


def _trl(folder: Path, options: Options) -> tuple[list[Measured], list[Goal]]:
    """dpo at long prompts, with a live reference on both sides and with a stored one."""
    words = (40, 10) if options.quick else (LONG_PROMPT_WORDS, COMPLETION_WORDS)
    layers, hidden, heads = (1, 32, 2) if options.quick else (4, 256, 4)
    weights = dpo_sides.write_model(folder / "long", vocabulary=None, layers=layers, hidden=hidden, heads=heads)
    data = dpo_sides.write_chat(folder / "long.jsonl", long_pairs(3 * PAIRS).rows, *words)
    model = ["loss=dpo", *_model(weights), "model.max_length=4096", "model.max_prompt_length=3500"]
    found: list[Measured] = []
    goals: list[Goal] = []
    for precomputed, source in ((False, LIVE), (True, STORED)):
        peer = {"folder": weights, "data": str(data), "batch_size": PAIRS, "precomputed": precomputed}
        kind = "stored reference" if precomputed else "live reference"
        sides = [
            Side(f"ours, dpo, {kind}", dpo_sides.ours, {"overrides": [*model, source], "data": str(data)}),
            Side(f"TRL, {kind}, {PAIRS} pairs at once", dpo_sides.trl, {**peer, "at_once": PAIRS}),
            Side(f"TRL, {kind}, 1 pair at once", dpo_sides.trl, {**peer, "at_once": 1}),
        ]
        part = list(measure(sides, options.updates or 2, options.threads, options.isolated).values())
        for theirs in part[1:]:
            require_same(part[0], theirs)
            goals.append(Goal(f"{part[0].name} against {theirs.name}", ratio(theirs, part[0]), 1.5, unit=" x"))
            goals += _memory(part[0], theirs, 0.5)
        found += part
    return found, goals


def _model(weights: str) -> list[str]:
    return ["model=llama", f"model.name_or_path={weights}", f"trainer.batch_size={PAIRS}"]


def _memory(mine: Measured, theirs: Measured, share: float) -> list[Goal]:
    """Peak memory of the whole process; none where sides shared one."""
    if mine.peak is None or theirs.peak is None:
        return []
    return [Goal(f"peak memory of {mine.name}, of {theirs.name}", mine.peak / theirs.peak, share, upper=True)]


if __name__ == "__main__":
    chosen, before = parse("benchmarks.dpo_memory"), load()
    publish(benchmark(chosen), chosen, before)
