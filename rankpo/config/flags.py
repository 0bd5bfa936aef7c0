"""Flags of the command line: those of Hydra, which follow the keys, and those of other systems, with their keys here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rankpo.config.places import CONFIG
from rankpo.config.renamed import NO_KEY, RENAMED

HYDRA_FLAGS = frozenset(
    [
        "help",
        "hydra-help",
        "version",
        "cfg",
        "resolve",
        "package",
        "run",
        "multirun",
        "shell-completion",
        "config-path",
        "config-name",
        "config-dir",
        "info",
    ]
)

OPTIONS = frozenset(  # flags without a value whose place here is the value of a key
    [
        "bf16",
        "fp16",
        "use_flash_attention",
        "load_best_model_at_end",
        "use_inbatch_neg",
        "use_logits",
        "save_on_epoch_end",
    ]
)

VALUE_FLAGS = frozenset(  # Flags of Hydra that are followed by a value.
    [
        *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    ]
)


def flag_refusal(arguments: Sequence[str]) -> str | None:
    """The message for `--key value`, a syntax that Hydra does not support, with a line for each; None if there is none.

    --experimental-rerun is rejected too, because Hydra unpickles the file that it names.
    """
    lines = []
    for place, argument in enumerate(arguments):
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name in HYDRA_FLAGS:
            continue
        if name == "experimental-rerun":
            lines.append(
                "--experimental-rerun is not allowed: it opens a pickle, which can run code; repeat the keys instead"
            )
            continue
        follows = arguments[place + 1] if place + 1 < len(arguments) else ""
        value = value or (follows if follows and not follows.startswith("-") and "=" not in follows else "")
        lines.append(f"--{name}: {_in_place_of(name.replace('-', '_'), value)}")
    return "\n".join(lines) or None


def _in_place_of(name: str, value: str) -> str:
    """The advice for a flag. value: its value, or "" for a flag without one."""
    if name in NO_KEY:
        return f"leave it out; {NO_KEY[name]}"
    said = RENAMED.get(name) or _only_place(name)
    key, _, note = said.partition(" ")
    option = note.strip("()").split(",")[0]
    if name in OPTIONS and value.lower() in ("", "true"):
        value = option
    remark = f" {note}" if note and option != value else ""
    return f"keys are set without dashes; write {key}={value or 'VALUE'}{remark}"


def _only_place(name: str) -> str:
    """The only key of the configs whose last part is `name`, or `name` if there are several or none."""
    found = {
        f"{'model' if path.parent.name == 'kind' else path.parent.name}.{name}"
        for path in CONFIG.glob("*/*.yaml")
        if re.search(rf"^{re.escape(name)}:", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        or (
            path.parent.name == "loss"
            and re.search(rf"^  {re.escape(name)}:", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        )
    }
    return found.pop() if len(found) == 1 else name


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's flags and their values after the keys, because argparse needs contiguous keys."""
    keys: list[str] = []
    flags: list[str] = []
    for place, argument in enumerate(arguments):
        is_flag = argument.startswith("-") or (place > 0 and arguments[place - 1] in VALUE_FLAGS)
        (flags if is_flag or (place > 0 and arguments[place - 1] == "--info" and "=" not in argument) else keys).append(
            argument
        )
    return [*keys, *flags]
