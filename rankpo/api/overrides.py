"""Overrides of the command line, made from Python keyword arguments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rankpo.config.aliases import modern
from rankpo.config.messages import keys_of
from rankpo.config.places import CONFIG
from rankpo.config.renamed import RENAMED
from rankpo.errors import ConfigError

# The order of groups for a short name that several of them have.
FIRST = ("trainer", "loss", "model", "optimizer", "scheduler")
GROUPS = frozenset(path.name for path in CONFIG.iterdir() if path.is_dir())


def overrides_of(keys: Mapping[str, object], chosen: Sequence[str]) -> list[str]:
    """The overrides of keywords: group options, dotted keys, mappings of a group's keys, and short names.

    A short name is the last part of a key, such as epochs for trainer.epochs. chosen: overrides that choose the groups.
    Raises ConfigError for unknown names.
    """
    choices, values = _parted(dict(_flat(keys)))
    config = _composed([*chosen, *choices])
    return [*choices, *(f"{_place(name, config)}={text_of(value)}" for name, value in values.items())]


def _parted(keys: Mapping[str, object]) -> tuple[list[str], dict[str, object]]:
    """Separates the choices of groups from all other keys."""
    choices = [f"{name}={_choice(value)}" for name, value in keys.items() if name in GROUPS]
    return choices, {name: value for name, value in keys.items() if name not in GROUPS}


def _choice(value: object) -> str:
    """An option of a group, or a list of options."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _flat(keys: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in keys.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("config", overrides=modern(overrides)[0])


def _place(name: str, config: DictConfig) -> str:
    """The dotted key of a keyword."""
    if "." in name or name in config:
        return name
    keys = list(keys_of(cast("Mapping[str, object]", OmegaConf.to_container(config, resolve=False))))
    found = [key for key in keys if key.rpartition(".")[2] == name]
    preferred = next((f"{group}.{name}" for group in FIRST if f"{group}.{name}" in found), None)
    if preferred or len(found) == 1:
        return preferred or found[0]
    if found:
        raise ConfigError(
            [f"{name} is a key of several groups; write **{{'{found[0]}': …}}, or one of {', '.join(found)}"]
        )
    if name in RENAMED:
        raise ConfigError([f"there is no key {name}; in rankpo it is {RENAMED[name]}"])
    known = {key.rpartition(".")[2] for key in keys}
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError([f"there is no key {name}{f'; did you mean {near[0]}?' if near else ''}"])


def text_of(value: object) -> str:
    """A value in Hydra's grammar. Raises TypeError for types that a config cannot hold."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, str | Path):
        return quoted(str(value))
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{text_of(item)}' for name, item in value.items())}}}"
    raise TypeError(
        f"the value of a key must be a string, a number, a boolean, None, a list or a mapping, got {type(value).__name__}"
    )


def quoted(text: str) -> str:
    """A string in single quotes. Backslashes inside are literal, except before a quote and at the end."""
    escaped = re.sub(r"(\\*)'", lambda found: f"{found.group(1) * 2}\\'", text)
    at_end = re.search(r"\\*$", escaped)
    return f"'{escaped}{at_end.group() if at_end else ''}'"
