"""One GPU: agreement with the CPU first, then updates of real shapes with random weights, and their peers.

    python -m benchmarks.gpu --minutes 9      # writes benchmarks/results/<date>.md
    python -m benchmarks.gpu --quick          # the same code on tiny shapes, on any device; no file

Nothing is downloaded: weights are random, texts are random letters with the lengths of web search (T2Ranking) and of
long profiles (RankPO). No step begins after --minutes; the report names what was left out and what failed. Rows are
printed as they are measured, and SIGTERM, as from a time limit, ends the run with the report so far.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from benchmarks import gpu_cases as cases
from benchmarks import gpu_pairs as pairs
from benchmarks.report import Goal, Options, Report, load, publish

Made = TypeVar("Made")
SPEED_OF_PEERS, SPEED_OF_TRL, DECODER_RATE, ENCODER_RATE, EIGHT_BILLION_GB = 1.5, 1.3, 0.5, 0.4, 24.0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass
class Found:
    """Rows, goals and remarks so far. Every row is printed at once, since a lease may end at any moment.

    quick: an error ends the run. ends: the time of time.monotonic after which no step begins.
    """

    quick: bool
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, row: dict[str, Any], *goals: Goal) -> None:
        self.rows.append(row)
        self.goals += goals
        shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
        say(" · ".join([*(f"{name} {value}" for name, value in shown.items() if value is not None), *map(str, goals)]))

    def attempt(self, what: str, step: Callable[[], Made]) -> Made | None:
        """The result of a step; None if it fails or the time is over, with the reason among the remarks.

        A step that fails, for example for lack of memory, does not end the run: the other steps still give results.
        """
        if time.monotonic() > self.ends:
            self.remark(f"left out, since the time was over: {what}")
            return None
        started = time.monotonic()
        try:
            return step()
        except Exception as error:
            if self.quick:
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = traceback.format_exception_only(error)[-1].strip()[:300]
            self.remark(f"{what} failed: {reason} ({Path(place.filename).name}:{place.lineno})")
            return None
        finally:
            cases.release()
            say(f"{what}: {time.monotonic() - started:.0f} s")

    def remark(self, line: str) -> None:
        self.remarks.append(line)
        say(line)


Case = Callable[[Path, bool, Found], None]


def benchmark(options: Options, found: Found) -> None:
    """Runs the cases in their order, each in a folder of its own that is deleted behind it."""
    for title, case in CASES.items():
        with TemporaryDirectory(prefix="rankpo-gpu-") as folder:
            found.attempt(title, partial(case, Path(folder), options.quick, found))


def report(found: Found) -> Report:
    return Report(
        "gpu",
        "Random weights of real shapes. Updates: forward, backward, clipping, AdamW, beside the preparation of the next.",
        found.rows,
        found.goals,
        [cases.device_in_words(), *found.remarks],
    )


def agreement(folder: Path, quick: bool, found: Found) -> None:
    """Losses and gradients of one update: the device in float32 against the CPU, bf16 against float32, packed against
    padded."""
    for name, case in list(cases.small_updates(folder).items())[: 1 if quick else None]:
        found.attempt(f"agreement, {name}", partial(_agreement, name, case, found))


def _agreement(name: str, case: Sequence[str], found: Found) -> None:
    exact = cases.gradients(case, "trainer.precision=fp32")
    differences = {
        "device against CPU": (cases.gradients(case, "trainer.precision=fp32", on_cpu=True), 1e-4),
        "bf16 against fp32": (cases.gradients(case, "trainer.precision=bf16"), 5e-2),
        "packed against padded": (cases.gradients(case, "trainer.precision=fp32", "model.layout=padded"), 1e-4),
    }
    apart = {what: cases.difference(exact, other) for what, (other, _) in differences.items()}
    goals = [
        Goal(f"{name}, {what}", max(apart[what], 1e-12), limit, upper=True) for what, (_, limit) in differences.items()
    ]
    found.add({"case": f"gradients, {name}", **apart}, *goals)


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
        bf16 = ("loss=contrastive", "trainer.precision=bf16")
        run = partial(cases.ours, f"contrastive, {name}", weights, work, *bf16, "trainer.max_tokens=200000")
        ours = found.attempt(f"contrastive, {name}", run)
        if ours is not None:
            share = ours.gflop / ours.seconds / rate
            found.add(ours.row(rate), Goal(f"{name}: share of the bf16 matrix rate", max(share, 1e-12), goal))
        run = partial(cases.ours, "the same, gradient cache", weights, work, *bf16, "trainer.max_tokens=32768")
        if cached := found.attempt(f"gradient cache, {name}", run):
            found.add(cached.row(rate))
        measured = []
        for form in cases.PEER_FORMS if cases.has("sentence_transformers") else ():
            run = partial(cases.sentence_transformers, form, weights, work, shape)
            if peer := found.attempt(f"sentence-transformers, {form}, {name}", run):
                measured.append(peer.seconds)
                found.add(peer.row(rate))
        if measured and ours is not None:
            speed = min(measured) / ours.seconds
            found.goals.append(
                Goal(f"{name}: speed of sentence-transformers' best form", speed, SPEED_OF_PEERS, unit=" x")
            )


def long_preferences(folder: Path, quick: bool, found: Found) -> None:
    """RankPO and dpo on a decoder of 1B parameters with 4,096 tokens a passage, with gradient checkpointing."""
    weights = cases.write_weights(folder / "one", cases.LLAMA_1B, quick)
    work = cases.long_pairs(folder, quick)
    options = ("trainer.precision=bf16", "trainer.gradient_checkpointing=true", "trainer.max_tokens=32768")
    losses = {
        "RankPO, 1B, 4,096 tokens": ("loss=rankpo", "kind=embedding"),
        "dpo, 1B, vocabulary of 128k": ("loss=dpo", "kind=causal_lm"),
    }
    for name, of_loss in losses.items():
        if measured := found.attempt(name, partial(cases.ours, name, weights, work, *of_loss, *options)):
            found.add(measured.row(cases.matrix_rate(quick)))
    if not cases.has("trl"):
        found.remark("TRL's side of dpo was left out: the package trl is not installed")
        return
    peer = found.attempt("dpo, TRL", partial(pairs.trl_dpo, folder, weights, work))
    if peer is not None and measured is not None:
        found.add(peer.row(1), Goal("dpo against TRL", peer.seconds / measured.seconds, SPEED_OF_TRL, unit=" x"))


def rerankers(folder: Path, quick: bool, found: Found) -> None:
    """An update of a cross-encoder beside sentence-transformers, and the lists that a decoder of 1B orders."""
    work = cases.web_search(folder, quick)
    weights = cases.write_weights(folder / "encoder", cases.MODERNBERT, quick)
    keys = ("loss=pointwise_bce", "kind=reranker", "trainer.precision=bf16", "trainer.max_tokens=200000")
    ours = found.attempt("cross-encoder", partial(cases.ours, "cross-encoder", weights, work, *keys))
    if ours is not None:
        found.add(ours.row(cases.matrix_rate(quick)))
    if cases.has("sentence_transformers"):
        run = partial(pairs.cross_encoder_of_peer, weights, work)
        peer = found.attempt("cross-encoder, sentence-transformers", run)
        if peer is not None and ours is not None:
            speed = Goal(
                "cross-encoder against sentence-transformers", peer.seconds / ours.seconds, SPEED_OF_PEERS, unit=" x"
            )
            found.add(peer.row(1), speed)
    decoder = cases.write_weights(folder / "decoder", cases.LLAMA_1B, quick)
    for decode in ("first_token", "generate"):
        if row := found.attempt(f"listwise, {decode}", partial(pairs.listwise, decode, decoder, quick)):
            found.add(row)


def adapters(folder: Path, quick: bool, found: Found) -> None:
    """LoRA on a decoder of 8B parameters, in bfloat16 and in 4 bits."""
    weights = cases.write_weights(folder / "eight", cases.LLAMA_8B, quick)
    work = cases.long_pairs(folder, quick, pairs=4)
    lora = ("loss=rankpo", "model.use_peft=true", "trainer.precision=bf16", "trainer.max_tokens=8192")
    lora = (*lora, "trainer.gradient_checkpointing=true", "trainer.batch_size=4")
    forms = {"4 bits": ("model.quantization=4bit",)} if cases.has("bitsandbytes") else {}
    for form, more in {**forms, "bfloat16": ("model.dtype=bfloat16",)}.items():
        measured = found.attempt(
            f"LoRA, 8B, {form}", partial(cases.ours, f"LoRA, 8B, {form}", weights, work, *lora, *more)
        )
        if measured is not None:
            size = max(measured.gigabytes, 1e-12)
            goals = [Goal("LoRA of 8B in 4 bits", size, EIGHT_BILLION_GB, upper=True, unit=" GB")]
            found.add(measured.row(cases.matrix_rate(quick)), *(goals if form == "4 bits" else ()))


def attention(folder: Path, quick: bool, found: Found) -> None:
    """One layer's packed attention, forward and backward, in each way: values against the loop, and seconds."""
    for way, kind in (("varlen", "bfloat16"), ("lengths", "bfloat16"), ("flex", "float32"), ("lengths", "float32")):
        if row := found.attempt(f"attention, {way}, {kind}", partial(cases.attention, way, kind, quick)):
            found.add(row)


def encoding(folder: Path, quick: bool, found: Found) -> None:
    """Texts a second, beside sentence-transformers."""
    weights = cases.write_weights(folder / "encoder", cases.MODERNBERT, quick)
    rates = {}
    for side in ("ours", *(["sentence-transformers"] if cases.has("sentence_transformers") else [])):
        if rate := found.attempt(f"encoding, {side}", partial(cases.encoding, side, weights, quick)):
            rates[side] = rate
            found.add({"case": f"encode, {side}", "texts/s": rate})
    if len(rates) == 2:
        ratio = rates["ours"] / rates["sentence-transformers"]
        found.goals.append(Goal("encoding against sentence-transformers", ratio, SPEED_OF_PEERS, unit=" x"))


CASES: dict[str, Case] = {
    "agreement": agreement,
    "contrastive updates": contrastive,
    "attention": attention,
    "preferences of 1B": long_preferences,
    "encoding": encoding,
    "rerankers": rerankers,
    "LoRA of 8B": adapters,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs; no file")
    parser.add_argument("--minutes", type=float, default=9, help="no step begins after so many (default 9)")
    given = parser.parse_args(arguments)
    if not given.quick and not cases.on_gpu():
        parser.error("there is no CUDA device; --quick runs the same code on tiny shapes")
    before, options = load(), Options(quick=given.quick)
    found = Found(given.quick, time.monotonic() + 60 * given.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # A time limit must not cost the report.
    try:
        benchmark(options, found)
    finally:
        publish(report(found), options, before)


if __name__ == "__main__":
    main()
