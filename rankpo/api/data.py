"""Data for Python callers: records, files, tables of other libraries, and dataset objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import xxhash

from rankpo.api.overrides import GROUPS, quoted
from rankpo.config.places import CONFIG
from rankpo.data.dataset import Dataset
from rankpo.errors import ConfigError
from rankpo.storage.atomic import replacing

BEIR = ("corpus.jsonl", "queries.jsonl")  # The files of a BEIR folder.
READER_OF_KIND = {"causal_lm": "chat", "listwise": "ranked_lists"}  # Other kinds use "jsonl".


@runtime_checkable
class Frame(Protocol):
    """A table of pandas."""

    def to_dict(self, orient: str) -> list[dict[str, object]]: ...

    def iterrows(self) -> object: ...


@runtime_checkable
class Rows(Protocol):
    """A dataset object of the caller, with the methods of `rankpo.data.dataset.Dataset`."""

    def fingerprint(self) -> str: ...

    def examples(self) -> object: ...


@dataclass(frozen=True, kw_only=True)
class Given:
    """The datasets of a caller for one group: overrides for the config, or a dataset object in their place."""

    overrides: tuple[str, ...] = ()
    own: Dataset | None = None


def given(data: object, group: str, kind: str, folder: Path) -> Given:
    """The dataset of `data=` or `eval_data=`.

    data: an option of the group, a path (file, folder, glob), records as mappings, a table of pandas or of the library
    datasets, or a dataset object. Records are written to `folder`, so that the run can be repeated and resumed.
    kind: the kind of the model, which determines how records are read. Raises ConfigError for any other value.
    """
    if data is None:
        return Given()
    if isinstance(data, Rows) and not isinstance(data, type):
        return Given(overrides=(f"{group}=[]",), own=cast("Dataset", data))
    if isinstance(data, str) and data in _options():
        return Given(overrides=(f"{group}=[{data}]",))
    if isinstance(data, str | Path):
        return Given(overrides=_of_path(Path(data).expanduser(), group, kind))
    return Given(overrides=_of_path(_written(_records(data, group), group, folder), group, kind))


def _options() -> set[str]:
    assert "datasets" in GROUPS
    return {path.stem for path in (CONFIG / "datasets").glob("*.yaml")}


def _of_path(path: Path, group: str, kind: str) -> tuple[str, ...]:
    is_beir = all((path / name).is_file() for name in BEIR)
    reader = "beir" if is_beir else READER_OF_KIND.get(kind, "jsonl")
    name = "train" if group == "datasets" else "dev"
    return f"{group}=[{reader}]", f"{group}.{reader}.path={quoted(str(path))}", f"{group}.{reader}.name={name}"


def _records(data: object, group: str) -> Iterable[Mapping[str, object]]:
    """The rows of a table or a list. Raises ConfigError for any other value."""
    if isinstance(data, Frame):
        # pandas represents missing values as NaN.
        return ({k: v for k, v in row.items() if v == v or not isinstance(v, float)} for row in data.to_dict("records"))
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        return cast("Iterable[Mapping[str, object]]", data)
    raise ConfigError(
        [
            f"{group} does not accept {type(data).__name__}; pass records as mappings, a path, an option of "
            "config/datasets, a table of pandas or datasets, or an object with name, fingerprint() and examples()"
        ]
    )


def _written(records: Iterable[Mapping[str, object]], group: str, folder: Path) -> Path:
    """Writes a JSON Lines file of the records, named by its contents. Raises ConfigError with the first bad record."""
    lines = []
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ConfigError(
                [f"{group}[{number}] must be a mapping, such as {{'query': …}}, got {type(record).__name__}"]
            )
        try:
            lines.append(json.dumps(dict(record), ensure_ascii=False, allow_nan=False, default=_plain) + "\n")
        except (TypeError, ValueError) as error:
            raise ConfigError([f"{group}[{number}]: {error}"]) from error
    if not lines:
        raise ConfigError([f"{group} is empty; pass at least one record"])
    text = "".join(lines).encode("utf-8", "surrogatepass")
    path = folder / f"{xxhash.xxh3_128_hexdigest(text)}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(text)
    return path


def _plain(value: object) -> object:
    """Converts NumPy numbers and arrays to JSON types. Raises TypeError for other types."""
    if isinstance(value, Plain):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")


@runtime_checkable
class Plain(Protocol):
    """A number or an array of numpy or torch."""

    def tolist(self) -> object: ...
