"""Options of the config's groups, read from their yamls: every key with its default, type and comment."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from rankpo.config.check import RUN_KEYS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
TARGET = "_target_"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as it is written on the command line, such as `loss.beta`."""

    name: str
    default: str
    type: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class Option:
    """A yaml of a group. summary: its first comment; base: the options it builds on; chooses: GROUP=OPTION of others."""

    group: str
    name: str
    summary: str
    base: tuple[str, ...]
    chooses: tuple[str, ...]
    target: str | None
    keys: tuple[Key, ...]


def groups() -> list[str]:
    """The folders of config/; links such as eval_datasets, which are another name for datasets, are left out."""
    return sorted(path.name for path in CONFIG.iterdir() if path.is_dir() and not path.is_symlink())


def options(group: str) -> list[Option]:
    """All options of a group, by name."""
    return [read(path) for path in sorted((CONFIG / group).glob("*.yaml"))]


@cache
def read(path: Path) -> Option:
    """The option of a yaml file."""
    text = path.read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text) or {}
    group = path.parent.relative_to(CONFIG).as_posix()
    defaults = tree.pop("defaults", [])
    package = re.search(r"^# @package (\S+)", text, flags=re.MULTILINE)
    place = package[1] if package else group
    place = "" if place in ("_global_", ".") else f"{place}."
    keys = tuple(_keys(tree, "", comments(text), place))
    return Option(
        group=group,
        name=path.stem,
        summary=_summary(text),
        base=tuple(item for item in defaults if isinstance(item, str)),
        chooses=tuple(_chosen(defaults)),
        target=_target(tree, group),
        keys=keys,
    )


def _summary(text: str) -> str:
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return "\n".join(line for line in lines if not line.startswith("@package"))


def _target(tree: Mapping[str, Any], group: str) -> str | None:
    """The class of the option: at the top, or below the group's own key or the name of a dataset."""
    below = [tree, *(value for value in tree.values() if isinstance(value, Mapping))]
    return next((str(node[TARGET]) for node in below if TARGET in node), None)


def _chosen(defaults: Sequence[object]) -> Iterator[str]:
    for item in defaults:
        if isinstance(item, Mapping):
            for name, value in item.items():
                chosen = ",".join(value) if isinstance(value, list) else value
                yield f"{str(name).removeprefix('override').strip().lstrip('/')}={chosen}"


def _keys(tree: Mapping[str, Any], below: str, said: Mapping[str, str], package: str) -> Iterator[Key]:
    """The leaves of a yaml. below: the path of `tree` in the file; package: what stands before it in a key."""
    types = _types(tree.get(TARGET), package + below)
    for name, value in tree.items():
        path = f"{below}{name}"
        if name == TARGET or (not below and name in ("hydra", "_self_")):
            continue
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{path}.", said, package)
        else:
            comment = said.get(path, "")
            written = types.get(str(name)) or _type_of(value)
            yield Key(name=package + path, default=_written(value), type=written, comment=comment)


@cache
def words() -> Mapping[str, Mapping[str, str]]:
    """Meanings of keys without a comment, by group and last part of the key."""
    found: dict[str, dict[str, str]] = yaml.safe_load(
        (Path(__file__).parent / "words.yaml").read_text(encoding="utf-8")
    )
    return found


def meaning(group: str, key: Key) -> str:
    """The comment of a key in its yaml, or else the words of its last part."""
    return key.comment or words().get(group.partition("/")[0], {}).get(key.name.rpartition(".")[2], "")


def _written(value: object) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("...").strip()


# Groups whose keys are described by another class than the `_target_` of their yamls, or by none of them
DESCRIBED_BY = {
    "trainer.": "rankpo.trainers.settings.TrainerSettings",
    "model.": "rankpo.models.kind.ModelKind",
}


def _types(target: object, place: str) -> dict[str, str]:
    """Annotations of the constructor arguments of a class, as they are written in its source."""
    if not place:
        return dict(RUN_KEYS)
    given = target if isinstance(target, str) and place != "trainer." else DESCRIBED_BY.get(place)
    if given is None or not given.startswith("rankpo."):
        return {}
    made = located(given)
    if is_dataclass(made):
        return {field.name: str(field.type) for field in fields(made)}
    return {name: str(item.annotation) for name, item in inspect.signature(made).parameters.items()}


def _type_of(value: object) -> str:
    """The type of a default, for keys whose class is not ours. YAML 1.1 reads 2e-5 as a text."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return "str"
        return "float"
    return {bool: "bool", int: "int", float: "float", list: "list", dict: "mapping"}.get(type(value), "")


@cache
def located(target: str) -> type:
    """The class of a `_target_`."""
    module, _, name = target.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


KEY = re.compile(r"^(?P<indent> *)(?P<name>[\w.-]+):(?= |$)(?P<rest>.*)$")


def comments(text: str) -> dict[str, str]:
    """The comment behind each key, by the path of the key; indented comment lines below continue it."""
    found: dict[str, str] = {}
    place: list[tuple[int, str]] = []
    path = ""
    for line in text.splitlines():
        if (match := KEY.match(line)) and not line.lstrip().startswith("#"):
            indent = len(match["indent"])
            place = [item for item in place if item[0] < indent]
            place.append((indent, match["name"]))
            path = ".".join(name for _, name in place)
            if comment := behind(match["rest"]):
                found[path] = comment
        elif path in found and line.startswith(" " * 8) and line.lstrip().startswith("# "):
            found[path] += " " + line.lstrip()[2:].strip()
    return found


def behind(rest: str) -> str:
    """The comment behind a value, whose quotes may hold a # of their own."""
    quote = ""
    for place, letter in enumerate(rest):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" and rest[place - 1 : place] in ("", " "):
            return rest[place + 1 :].strip()
    return ""


def all_keys() -> set[str]:
    """Every key of config.yaml and of every option of every group, also under the names that are links."""
    paths = sorted(CONFIG.rglob("*.yaml"), key=str)
    found: set[str] = set()
    for path in paths:
        group = path.relative_to(CONFIG).parts[0]
        if (CONFIG / group).is_symlink():
            continue
        found |= {key.name for key in read(path).keys}
    links = {path.name: path.resolve().name for path in CONFIG.iterdir() if path.is_symlink()}
    for name, original in links.items():
        found |= {name + key.removeprefix(original) for key in found if key.startswith(f"{original}.")}
    return found
