"""Launch request: strategy, processes and precision from the launcher's environment and command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import pairwise
from pathlib import Path

import psutil
import yaml

from rankpo.errors import ConfigError

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# These variables of `accelerate launch` request features that the loop does not support.
UNKNOWN = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend",
}
# MPI's launchers set these variables and no WORLD_SIZE.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHER = re.compile(r"accelerate(_cli)? launch\b|accelerate-launch\b|accelerate[./]commands[./]launch\b")


def precision_asked(environment: Mapping[str, str]) -> str | None:
    """Returns the precision that `accelerate launch` requests, in the words of trainer.precision; None for none."""
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return next((name for name, theirs in PRECISIONS.items() if theirs == asked and asked != "no"), None)


def contradiction(environment: Mapping[str, str], precision: str) -> str | None:
    """Returns one sentence on a request of `accelerate launch` that this run does not support, or None."""
    for variable, name in UNKNOWN.items():
        if environment.get(variable, "").lower() not in ("", "no", "false"):
            return f"accelerate's {name} is not supported; the files of accelerate_config/ are what is"
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", PRECISIONS[precision]):
        return (
            f"accelerate's mixed_precision={asked} contradicts trainer.precision={precision}, which decides; "
            "leave the first at 'no' and set the second"
        )
    return None


def strategy_asked(environment: Mapping[str, str]) -> str | None:
    """Returns FSDP or DEEPSPEED, if `accelerate launch` requests it, else None."""
    for name in ("FSDP", "DEEPSPEED"):
        if environment.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            return name
    return None


def processes_asked(environment: Mapping[str, str]) -> int:
    """Returns the requested number of processes.

    For MULTI_CPU and --cpu, accelerate's simple launcher starts one process, and the requested number is only on its
    command line. Tasks of one Slurm step, or of mpirun, are processes too.
    """
    if "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in environment else 1
    ranks = [int(environment.get(name, "1")) for name in MPI_SIZES]
    return max(tasks, *ranks, _asked_on(psutil.Process().parent()))


def _asked_on(parent: psutil.Process | None) -> int:
    """Returns num_processes of the parent's command line or configuration file; 1 if it is not a launcher."""
    try:
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:  # The process belongs to another user or has ended.
        return 1
    if not LAUNCHER.search(" ".join(words[:6])):
        return 1
    options = launcher_options(words)
    if "num_processes" in options:
        return int(options["num_processes"])
    file = Path(options["config_file"]) if "config_file" in options else _default_config(options)
    if file is not None and file.is_file():
        return int((yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("num_processes", 1))
    return 1


def _default_config(options: Mapping[str, str]) -> Path | None:
    """The file of `accelerate config`, which its launcher reads if no file is given; None with --cpu."""
    from accelerate.commands.config.config_args import default_config_file

    return None if "cpu" in options else Path(default_config_file)


def launcher_options(words: Sequence[str]) -> dict[str, str]:
    """The options of `accelerate launch` before the script or `-m rankpo`, by name with underscores."""
    options: dict[str, str] = {}
    for word, following in pairwise([*words, ""]):
        if word.endswith(".py") or (word == "rankpo" and {"-m", "--module"} & set(words)):
            break
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            options[name.replace("-", "_")] = value or following
    return options


# Of FSDP's first version; the second has no such choice, or another name for it.
OF_FSDP1 = ("FSDP_BACKWARD_PREFETCH", "FSDP_FORWARD_PREFETCH", "FSDP_USE_ORIG_PARAMS", "FSDP_SYNC_MODULE_STATES")
RESHARDS = {"FULL_SHARD": "true", "1": "true", "SHARD_GRAD_OP": "false", "2": "false"}


def second_fsdp(environment: MutableMapping[str, str]) -> str | None:
    """Turns a request for FSDP's first version, which older files of `accelerate` make, into one for the second.

    Returns a line that says so; None where the second was asked for. Raises ConfigError for what it does not have.
    """
    if strategy_asked(environment) != "FSDP" or environment.get("FSDP_VERSION", "1") == "2":
        return None
    sharding = environment.pop("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    if sharding not in RESHARDS:
        allowed = "write FULL_SHARD or SHARD_GRAD_OP, or take accelerate_config/fsdp.yaml"
        raise ConfigError([f"fsdp_sharding_strategy={sharding} is not supported; {allowed}"])
    for name in OF_FSDP1:
        environment.pop(name, None)
    environment["FSDP_VERSION"] = "2"
    environment["FSDP_RESHARD_AFTER_FORWARD"] = RESHARDS[sharding]
    environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] = (
        "false"  # Every process builds the model; see accelerate_config/fsdp.yaml.
    )
    return (
        f"fsdp_version 1 with {sharding} was asked for and runs as version 2 with "
        f"fsdp_reshard_after_forward={RESHARDS[sharding]}; accelerate_config/fsdp.yaml asks for it directly"
    )


def settle_auto(config: dict[str, object]) -> None:
    """Gives the values "auto" of a DeepSpeed configuration, which transformers' Trainer fills in from its arguments.

    Sizes of buckets keep DeepSpeed's own defaults: accelerate would derive them from a `model.config` that our models do
    not have. The trainer clips gradients and counts batches itself, so that the batch size scales nothing.
    """
    config["train_micro_batch_size_per_gpu"] = 1
    if config.get("gradient_accumulation_steps") == "auto":
        config["gradient_accumulation_steps"] = 1
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in [key for key, value in part.items() if value == "auto" and key != "enabled"]:
            del part[key]
