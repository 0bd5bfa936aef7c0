"""Entry point of launch.py, `rankpo` and `python -m rankpo`: composes the config, checks it, and runs the task.

Functions import torch and other slow modules only after the config has been checked, so that --help and config errors
appear quickly.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rankpo.config.aliases import modern
from rankpo.config.flags import flag_refusal, flags_last
from rankpo.config.guard import announced, guarded
from rankpo.config.memory import too_small_to_start
from rankpo.config.messages import (
    about_records,
    explain,
    multirun_refusal,
    null_group,
    run_error,
)
from rankpo.config.once import composed_once
from rankpo.config.places import CONFIG
from rankpo.config.run_folder import register
from rankpo.errors import ConfigError, InputError
from rankpo.runs.signals import REQUEUE, Interrupted, leaving_at_once
from rankpo.storage.printable import shown

register()


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")
def compose_and_run(config: DictConfig) -> None:
    if (refused := too_small_to_start()) is not None:
        stop(refused, 1)
    from rankpo.cli import job

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode == hydra.types.RunMode.MULTIRUN:
        job.run_in_sweep(config, overrides)
        return
    if (notice := announced(overrides)) is not None and os.environ.get("RANK", "0") == "0":
        say(notice)
    try:
        job.run(config, overrides)
        close_processes()
    except Interrupted:  # The run has already printed the reason.
        close_processes()
        sys.exit(REQUEUE)
    except (ValueError, RuntimeError, OSError, MemoryError, ImportError) as error:
        message = run_error(error, os.environ)
        if message is None:
            raise
        stop(message, exit_code(error))


def close_processes() -> None:
    """Destroys the process group if one exists."""
    if "rankpo.runs.processes" in sys.modules:
        sys.modules["rankpo.runs.processes"].shut_down()


def stop(message: str, code: int) -> NoReturn:
    """Prints the message and exits. Raising an error instead would make Hydra print an additional line."""
    say(message)
    sys.exit(code)


def say(message: str) -> None:
    sys.stderr.write(f"{shown(message)}\n")


def say_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of an unexpected error, without secrets and control characters."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip())


def exit_code(error: Exception) -> int:
    """Returns the exit code: 2 for an invalid config, invalid records or invalid weights, 1 for any other failure."""
    return 2 if isinstance(error, InputError) or about_records(error) else 1


INVALID = 2  # The exit code for an invalid config, invalid records or invalid weights.
CLOSED_PIPE = 128 + signal.SIGPIPE  # The exit code that a shell reports for a process that SIGPIPE ended.
# `run_error` can explain some of these errors to users. An unexplained error prints a traceback.
FORESEEN = (ValueError, RuntimeError, OSError, MemoryError, ImportError)


def main() -> int:
    """Runs the command line and returns the exit code.

    The code is 0 for success, 1 for a failed run, 2 for an invalid config, and 75 for a run that SIGTERM or SIGUSR1
    interrupted. The program prints one line for each problem of a config, and the reason of a failed run. The option
    resume=auto continues an interrupted run. Unexpected errors print a traceback.
    """
    refusal = multirun_refusal(sys.argv[1:], os.environ) or flag_refusal(sys.argv[1:])
    if refusal:
        say(refusal)
        return 2
    try:
        sys.argv[1:], notes = modern(flags_last(sys.argv[1:]))
    except ConfigError as error:
        say(str(error))
        return 2
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            say(note)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Makes Hydra raise instead of printing.
    try:
        try:
            with guarded(), composed_once(sys.argv[1:]), leaving_at_once():
                compose_and_run()
        finally:
            if "rankpo.sweeps.folder" in sys.modules:
                sys.modules["rankpo.sweeps.folder"].close_all()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        say(explain(error, sys.argv[1:]))
        return 2
    except FORESEEN as error:  # A sweep raises the error of a failed job here, after it has run all other jobs.
        if refused := null_group(error, sys.argv[1:]):
            say(refused)
            return 2
        message = run_error(error, os.environ)
        if message is None:
            raise
        say(message)
        return exit_code(error)
    return 0


def leave(code: str | int | None) -> NoReturn:
    """Ends this process with the exit code.

    A process of a distributed run skips the interpreter's shutdown, because torch's threads sometimes abort it. A process
    with an invalid config or invalid records skips it too: with torch imported it takes a third of the time until the
    shell's prompt is back. The exit handlers run before.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) <= 1
    if alone and code == INVALID:
        atexit._run_exitfuncs()
    if not alone or code == INVALID:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def start(program: Callable[[], int]) -> NoReturn:
    """Runs a program and exits with its result as the exit code."""
    sys.excepthook = say_trace
    try:
        ended: str | int | None = program()
    except SystemExit as ending:
        ended = ending.code
    except BrokenPipeError:  # The reader of the output, such as `| head`, has closed the pipe.
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Otherwise the interpreter's final flush of stdout fails.
        ended = CLOSED_PIPE
    leave(ended)
