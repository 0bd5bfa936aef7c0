"""How soon the program answers: help and config errors, which a user meets before anything heavy is needed.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.report import Goal, Options, Report, load, parse, publish
from rankpo.config.places import ROOT

HELP = ("--help",)
ERRORS = (
    ("loss=rankp",),
    ("loss=rankpo", "loss.bta=5"),
    ("loss=rankpo", "loss.temperature=0"),
    ("loss=rankpo", "datasets=[rankpo]", "datasets.rankpo.path=missing.jsonl"),
)


class UnexpectedExitError(RuntimeError):
    """A command that ended with another exit code than it should."""


def seconds(arguments: tuple[str, ...], exit_code: int) -> float:
    """Of one run of launch.py."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "launch.py", *arguments], cwd=ROOT, capture_output=True, check=False)
    taken = time.perf_counter() - started
    if done.returncode != exit_code:
        raise UnexpectedExitError(f"launch.py {' '.join(arguments)} ended with {done.returncode}, not {exit_code}")
    return taken


def benchmark(options: Options) -> Report:
    runs = options.updates or (1 if options.quick else 5)
    commands = [(HELP, 0), *((arguments, 2) for arguments in (ERRORS[:1] if options.quick else ERRORS))]
    times = {arguments: [seconds(arguments, code) for _ in range(runs)] for arguments, code in commands}
    medians = {arguments: statistics.median(taken) for arguments, taken in times.items()}
    worst = max(taken for arguments, taken in medians.items() if arguments != HELP)
    return Report(
        "startup",
        f"launch.py started {runs} times each.",
        [
            {
                "launch.py": " ".join(arguments),
                "median s": medians[arguments],
                "range s": f"{min(taken):.3g} to {max(taken):.3g}",
            }
            for arguments, taken in times.items()
        ],
        [
            Goal("help", medians[HELP], 1.0, upper=True, unit=" s"),
            Goal("slowest config error", worst, 2.0, upper=True, unit=" s"),
        ],
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.startup"), load()
    publish(benchmark(chosen), chosen, before)
