"""Messages for config errors and for stopped runs, one line each."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rankpo import errors
from rankpo.config.aliases import ALIASES
from rankpo.config.choices import options_of
from rankpo.config.memory import memory_message
from rankpo.config.places import CONFIG
from rankpo.config.renamed import NO_KEY, RENAMED
from rankpo.errors import ConfigError, ManyLines
from rankpo.storage.atomic import UNWRITTEN, remedy, room
from rankpo.storage.printable import one_line

PORT_IN_USE = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


def unknown(name: str, value: str, allowed: Iterable[str], found: Sequence[str] = (), leaf: str | None = None) -> str:
    """Like `errors.unknown`, with the name in rankpo for a key of one of the systems that rankpo replaces.

    found: keys elsewhere in the config with the same last part, which the message also lists. leaf: the last part of a
    longer key that begins with `value`.
    """
    asked = leaf or value
    if asked in NO_KEY and not found:
        return errors.unknown(name, value, allowed, f", and needs none: {NO_KEY[asked]}")
    renamed = RENAMED.get(asked)
    here = renamed if renamed and renamed.split()[0] not in found else " or ".join(found)
    # The suggested key must differ from the missing one; it can be missing here, e.g. for another optimizer.
    known = here and not name.startswith(f"{here.split()[0]}:")
    return errors.unknown(name, value, allowed, f"; here it is {here}" if known else "")


def multirun_refusal(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The message for a sweep inside a launch of several processes, or None.

    All jobs would share one process group. After a failure on one rank, the ranks would mix gradients of two configs
    without an error.
    """
    if not {"-m", "--multirun"} & set(arguments) or int(environment.get("WORLD_SIZE", "1")) <= 1:
        return None
    rest = " ".join(argument for argument in arguments if argument not in ("-m", "--multirun"))
    return f"a sweep cannot run inside one launch of several processes; start it with: python launch.py -m {rest}"


def run_error(error: Exception, environment: Mapping[str, str]) -> str | None:
    """The message of an error that this package raised, or that names a file; None for any other error, which is a bug.

    If the innermost line of the trace is a `raise` of this package, the message tells what to change. With several
    processes, the rank precedes the message, because only one of them may have failed.
    """
    several = int(environment.get("WORLD_SIZE", "1")) > 1
    message = _foreseen(error, several, environment)
    if message is None or isinstance(error, ConfigError):
        return message
    lines = message.splitlines() if isinstance(error, ManyLines) else [message]
    shown = "\n".join(map(one_line, lines))
    return f"rank {environment.get('RANK', '0')}: {shown}" if several else shown


def _foreseen(error: Exception, several: bool, environment: Mapping[str, str]) -> str | None:
    words = str(error)
    if isinstance(error, errors.OutOfMemory):
        return words
    if errors.is_out_of_memory(error):  # Also where the import of a library failed for that reason.
        return memory_message(error)
    if isinstance(error, ConfigError):
        return "\n".join(map(one_line, error.problems))
    if PORT_IN_USE.search(words) and type(error).__name__.startswith("Dist"):
        return (
            f"MASTER_PORT={environment.get('MASTER_PORT', 'unset')} is in use by another program; set another, "
            "such as --main_process_port 29501 of accelerate launch, or --master-port of torchrun"
        )
    if several and (type(error).__name__.startswith("Dist") or "gloo" in words):
        return "lost another rank: see its own message, or raise trainer.timeout_minutes if it was slow"
    if isinstance(error, OSError) and error.errno in UNWRITTEN:
        return f"{room(error.errno)}; {remedy(error.errno)}, and the same command with resume=auto continues"
    if isinstance(error, ValueError) and "embedded null" in words:
        return "a path or a name contains a NUL character; check the config and the files that it names"
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(innermost.filename).is_relative_to(errors.PACKAGE) and (innermost.line or "").startswith("raise")
    if ours:
        return words
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename is not None else None


def about_records(error: Exception) -> bool:
    """Whether a reader of data rejected the content of a file."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and Path(frames[-1].filename).is_relative_to(errors.PACKAGE / "data")


def _not_yaml(error: yaml.YAMLError) -> str:
    """The message for a config file that is not valid YAML, in one line."""
    problem = one_line(str(getattr(error, "problem", None) or error))
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}:{mark.line + 1}" if mark is not None else "a config file"
    return f"{one_line(place)} is not valid YAML: {problem}"


def null_group(error: Exception, arguments: Sequence[str]) -> str | None:
    """The message for a group that the command line sets to null, for which Hydra prints a traceback; else None."""
    if not isinstance(error, ValueError) or "Config group override must be a string or a list" not in str(error):
        return None
    groups = {path.name for path in CONFIG.iterdir() if path.is_dir()}
    given = [argument.lstrip("+").partition("=") for argument in arguments]
    for name, _, value in given:
        if name in groups and value.lower() in ("true", "false"):
            return f"{name}={value}: {name} is a group; choose one of its options: {', '.join(options_of(name))}"
    names = [name for name, _, value in given if value in ("null", "") and name in groups]
    name = names[0] if names else "a group"
    return f"{name}=null: a run needs one of its options; allowed: {', '.join(options_of(name)) or 'see config/'}"


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """An error of Hydra, OmegaConf or YAML in one line, with the nearest name that exists."""
    if isinstance(error, yaml.YAMLError):
        return _not_yaml(error)
    text = str(error)
    missing = re.search(r"(?:Could not find|In '[^']+': Could not find) '([\w@]+)/([^']+)'", text)
    if missing:
        group, option = missing.groups()
        if group == "model" and option in ALIASES:
            return f"model={option} is an old name, which a yaml cannot use; write {ALIASES[option].spelling}"
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return unknown(f"{group}={option}: the group {group!r}", option, options)
    if added := re.search(r"force-add of config groups is not supported: '\++([\w/]+)=", text):
        group = added.group(1)
        return f"{group} is a group; write {group}=… without ++, one of: {', '.join(options_of(group))}"
    unknown_key = re.search(r"Could not override '([^']+)'", text)
    if unknown_key:
        return _explain_key(unknown_key.group(1), arguments)
    override = getattr(error, "override", None)
    if override is not None and "=" in override:
        key, _, value = override.partition("=")
        return f"{override}: Hydra cannot read this value; add inner quotes: \"{key}='{value}'\""
    unlisted = re.search(r"Could not load '([\w@/]+)/([^'/]+)'", text)
    if unlisted:
        group, option = unlisted.groups()
        return unknown(f"{group}=[{option}]: the group {group!r}", option, options_of(group))
    if "does not support sweep type" in text:
        return "interval(…) has infinitely many values; add search=optuna, which chooses among them"
    no_group = re.search(r"Could not override '?([\w@/]+)'?\. No match in the defaults list", text)
    if no_group:
        return f"{no_group.group(1)} is not a group of the config"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _explain_key(key: str, arguments: Sequence[str]) -> str:
    """The message for a key that is not in the config, with similar names of the same config without that key."""

    bare = key.split("@")[0]
    if bare.startswith("search."):
        return f"{bare} is a key of search=optuna; add search=optuna"
    group = bare.replace(".", "/")
    if users := _users_of(group):
        return f"{group.replace('/', '.')} is a key of {' and '.join(users)} alone; add one of them"
    named = [(item, item.lstrip("+~").partition("=")[0]) for item in arguments if "=" in item and item[:1] != "-"]
    kept = [
        item for item, name in named if name != key and (CONFIG / name.split("@")[0]).is_dir()
    ]  # Choices of groups.
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            config = compose("config", overrides=[item for item in kept if not item.startswith("hydra")])
    except HydraException as error:
        return " ".join(str(error).split())
    parent, _, leaf = bare.rpartition(".")
    while parent and OmegaConf.select(config, parent, throw_on_missing=False) is None:
        parent, _, leaf = parent.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    names = [str(name) for name in node if str(name) != "_target_"] if isinstance(node, DictConfig) else []
    if leaf in names:  # A mapping with free keys, which Hydra only allows to append.
        return f"{bare} takes keys one by one, each with a plus sign: +{bare}{'.NAME' if bare.endswith(leaf) else ''}=VALUE"
    if parent == "model" and (kinds := _kinds_with(leaf)):
        return f"{bare}: this kind has no {leaf!r}; {', '.join(kinds)} ha{'ve' if kinds[1:] else 's'} it: add kind={kinds[0]}"
    tree: Any = OmegaConf.to_container(config, resolve=False)
    last = bare.rpartition(".")[2]
    return unknown(f"{bare}: {parent or 'the config'}", leaf, names, elsewhere(tree, last), last)


def elsewhere(tree: Mapping[str, object], leaf: str) -> list[str]:
    """The dotted keys of a config whose last part is `leaf`."""
    return [key for key in keys_of(tree) if key.rpartition(".")[2] == leaf][:3]


def keys_of(tree: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{name}.")


def _users_of(group: str) -> list[str]:
    """The choices, such as loss=listwise_ranking, whose yaml takes an option of this group inside of a group."""
    folder, _, _ = group.rpartition("/")
    if not folder or not (CONFIG / group).is_dir():
        return []
    yamls = sorted((CONFIG / folder).glob("*.yaml"))
    return [f"{folder}={path.stem}" for path in yamls if f"- /{group}:" in path.read_text(encoding="utf-8")]


def _kinds_with(key: str) -> list[str]:
    """The kinds of models whose yaml has the key."""
    return [
        path.stem
        for path in sorted((CONFIG / "kind").glob("*.yaml"))
        if f"\n{key}:" in path.read_text(encoding="utf-8")
    ]
