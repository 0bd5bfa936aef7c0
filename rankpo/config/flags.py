"""Flags of the command line: those of Hydra, which follow the keys, and those of other systems, with their keys here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankpo.config.places import CONFIG
from rankpo.config.renamed import MAX_TOKENS, NO_KEY, RENAMED

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
        "knowledge_distillation",
        "use_flash_attn",
        "unified_finetuning",
        "load_in_4bit",
        "load_in_8bit",
        "vllm_batched",
    ]
)

BELOW_A_NAME = ("loss", "datasets")  # Groups whose yamls have their keys below a name.
ORDER = ("trainer", "model", "loss", "datasets", "task")  # The groups that a message names first.
MOST_PLACES = 3
SPLIT = (
    "trainer.batch_size counts over all devices, an update is split into micro-batches automatically, and "
    "trainer.max_tokens limits their memory"
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
    if RENAMED.get(name) == MAX_TOKENS:
        return f"leave it out; {SPLIT}"
    places = [RENAMED[name]] if name in RENAMED else _places(name)
    if not places:
        return f"keys are set without dashes, and no key is called {name!r}; rankpo train --cfg job prints all keys"
    if len(places) > 1:
        several = " or ".join(f"{place}={value or 'VALUE'}" for place in places[:MOST_PLACES])
        return f"keys are set without dashes; write {several}"
    key, _, note = places[0].partition(" ")
    option = note.strip("()").split(",")[0]
    if name in OPTIONS and value.lower() in ("", "true"):
        value = option
    remark = f" {note}" if note and option != value else ""
    return f"keys are set without dashes; write {key}={value or 'VALUE'}{remark}"


def _places(name: str) -> list[str]:
    """The keys of the configs whose last part is `name`: a group or a key at the top, or else keys of the groups."""
    top = _keys(CONFIG / "config.yaml", "")
    if name in top or (CONFIG / name).is_dir():
        return [name]
    found = set()
    for path in CONFIG.glob("*/*.yaml"):
        group = path.parent.name
        if path.parent.is_symlink():  # eval_datasets and others are the same files under another name
            continue
        indent = "  " if group in BELOW_A_NAME else ""
        if name in _keys(path, "") or name in _keys(path, indent):
            entry = ".NAME" if group == "datasets" else ""
            found.add(f"{'model' if group == 'kind' else group}{entry}.{name}")
    groups = {group: number for number, group in enumerate(ORDER)}
    return sorted(found, key=lambda place: (groups.get(place.split(".")[0], len(ORDER)), place))


def _keys(path: Path, indent: str) -> set[str]:
    """The keys of a yaml at one depth. indent: the white space in front of them."""
    return set(re.findall(rf"^{indent}(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


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
