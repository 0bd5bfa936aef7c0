"""One GPU: agreement with the CPU first, then updates of real shapes with random weights, and their peers.

    python -m benchmarks.gpu --minutes 10     # writes benchmarks/results/<date>.md
    python -m benchmarks.gpu --quick          # the same code on tiny shapes, on any device; no file

Nothing is downloaded: weights are random, texts are random letters with the lengths of web search (T2Ranking) and of
long profiles (RankPO). A case that no longer fits into --minutes is left out, and the report names it.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import gpu_cases as cases
from benchmarks.report import Goal, Options, Report, load, publish

SPEED_OF_PEERS, DECODER_RATE, ENCODER_RATE, EIGHT_BILLION_GB = 1.5, 0.5, 0.4, 24.0


@dataclass
class Found:
    """Rows, goals and remarks of the cases that have run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


Case = Callable[[Path, bool, Found], None]


def benchmark(options: Options, minutes: float = 10) -> Report:
    found = Found()
    ends = time.monotonic() + 60 * minutes
    for title, case in CASES.items():
        if time.monotonic() > ends:
            found.remarks.append(f"left out, since {minutes:g} minutes were over: {title}")
            continue
        with TemporaryDirectory(prefix="rankpo-gpu-") as folder:
            try:
                case(Path(folder), options.quick, found)
            except (
                Exception
            ):  # One case that fails, such as for lack of memory, must not cost the others their results.
                if options.quick:
                    raise
                found.remarks.append(f"{title} failed: {traceback.format_exc().strip().splitlines()[-1]}")
        cases.release()
    return Report(
        "gpu",
        "Random weights of real shapes. Updates: planning, forward, backward, clipping, AdamW.",
        found.rows,
        found.goals,
        [cases.device_in_words(), *found.remarks],
    )


def agreement(folder: Path, quick: bool, found: Found) -> None:
    """Losses and gradients of one update: the device in float32 against the CPU, bf16 against float32, packed against
    padded."""
    for name, case in list(cases.small_updates(folder).items())[: 1 if quick else None]:
        exact = cases.gradients(case, "trainer.precision=fp32")
        on_cpu = cases.gradients(case, "trainer.precision=fp32", on_cpu=True)
        rounded = cases.gradients(case, "trainer.precision=bf16")
        padded = cases.gradients(case, "trainer.precision=fp32", "model.layout=padded")
        differences = {
            "device against CPU": (cases.difference(exact, on_cpu), 1e-4),
            "bf16 against fp32": (cases.difference(exact, rounded), 5e-2),
            "packed against padded": (cases.difference(exact, padded), 1e-4),
        }
        found.rows.append({"case": f"gradients, {name}", **{what: value for what, (value, _) in differences.items()}})
        found.goals += [
            Goal(f"{name}, {what}", max(value, 1e-12), limit, upper=True)
            for what, (value, limit) in differences.items()
        ]


def contrastive(folder: Path, quick: bool, found: Found) -> None:
    """A contrastive update of a decoder and of an encoder, 64 queries x 8, beside sentence-transformers."""
    rate = cases.matrix_rate(quick)
    shapes = {
        "Qwen3-0.6B's shape": (cases.QWEN3, DECODER_RATE),
        "ModernBERT-base's shape": (cases.MODERNBERT, ENCODER_RATE),
    }
    for name, (shape, goal) in shapes.items():
        work = cases.web_search(folder, quick)
        weights = cases.write_weights(folder / name.split("-", maxsplit=1)[0], shape, quick)
        ours = cases.ours(
            f"contrastive, {name}",
            weights,
            work,
            "loss=contrastive",
            "trainer.precision=bf16",
            "trainer.max_tokens=200000",
        )
        cached = cases.ours(
            "the same, gradient cache",
            weights,
            work,
            "loss=contrastive",
            "trainer.precision=bf16",
            "trainer.max_tokens=32768",
        )
        peers = cases.sentence_transformers(weights, work, shape)
        found.rows += [measured.row(rate) for measured in (ours, cached, *peers)]
        share = ours.gflop / ours.seconds / rate
        found.goals.append(Goal(f"{name}: share of the bf16 matrix rate", max(share, 1e-12), goal))
        best = min((peer.seconds for peer in peers), default=None)
        if best is not None:
            found.goals.append(
                Goal(
                    f"{name}: speed of sentence-transformers' best form", best / ours.seconds, SPEED_OF_PEERS, unit=" x"
                )
            )


def long_preferences(folder: Path, quick: bool, found: Found) -> None:
    """RankPO on a decoder of 1B parameters with 4,096 tokens a passage, with gradient checkpointing."""
    weights = cases.write_weights(folder / "one", cases.LLAMA_1B, quick)
    work = cases.long_pairs(folder, quick)
    options = (
        "loss=rankpo",
        "trainer.precision=bf16",
        "trainer.gradient_checkpointing=true",
        "trainer.max_tokens=32768",
    )
    found.rows.append(cases.ours("RankPO, 1B, 4,096 tokens", weights, work, *options).row(cases.matrix_rate(quick)))


def adapters(folder: Path, quick: bool, found: Found) -> None:
    """LoRA on a decoder of 8B parameters, in bfloat16 and in 4 bits."""
    weights = cases.write_weights(folder / "eight", cases.LLAMA_8B, quick)
    work = cases.long_pairs(folder, quick, pairs=4)
    lora = ("loss=rankpo", "model.use_peft=true", "trainer.precision=bf16", "trainer.max_tokens=8192")
    lora = (*lora, "trainer.gradient_checkpointing=true", "trainer.batch_size=4")
    forms = {
        "bfloat16": ("model.dtype=bfloat16",),
        **({"4 bits": ("model.quantization=4bit",)} if cases.has_bnb() else {}),
    }
    for form, more in forms.items():
        measured = cases.ours(f"LoRA, 8B, {form}", weights, work, *lora, *more)
        found.rows.append(measured.row(cases.matrix_rate(quick)))
        if form == "4 bits":
            found.goals.append(
                Goal("LoRA of 8B in 4 bits", max(measured.gigabytes, 1e-12), EIGHT_BILLION_GB, upper=True, unit=" GB")
            )


def encoding(folder: Path, quick: bool, found: Found) -> None:
    """Texts a second, beside sentence-transformers."""
    weights = cases.write_weights(folder / "encoder", cases.MODERNBERT, quick)
    ours, peer = cases.encoding(weights, quick)
    found.rows += [
        {"case": f"encode, {name}", "texts/s": rate} for name, rate in (("ours", ours), ("peer", peer)) if rate
    ]
    if peer:
        found.goals.append(Goal("encoding against sentence-transformers", ours / peer, SPEED_OF_PEERS, unit=" x"))


CASES: dict[str, Case] = {
    "agreement": agreement,
    "contrastive updates": contrastive,
    "RankPO of 1B": long_preferences,
    "LoRA of 8B": adapters,
    "encoding": encoding,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs; no file")
    parser.add_argument("--minutes", type=float, default=10, help="no case begins after so many (default 10)")
    given = parser.parse_args(arguments)
    if not given.quick and not cases.on_gpu():
        parser.error("there is no CUDA device; --quick runs the same code on tiny shapes")
    before = load()
    options = Options(quick=given.quick)
    publish(benchmark(options, given.minutes), options, before)


if __name__ == "__main__":
    main()
