"""Names of a sweep's jobs, derived from their varied overrides and valid on every file system."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

import xxhash
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

MAX_NAME = 120  # characters; file systems allow 255 bytes
NOT_VARIED = ("search", "overwrite", "resume")  # These keys do not identify a job.
PLAIN = re.compile(r"[a-z0-9_.=,+-]+")
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![\w.])")


@lru_cache(maxsize=4096)
def canonical(override: str) -> str:
    """An override with a canonical value: 1e-4 and 0.0001 are the same value, and so are 'a' and a."""

    parse = OverridesParser.create().parse_override
    try:
        item = parse(override)
        if item.is_sweep_override() or "=" not in override:
            return canonical_range(override)
        key = item.get_key_element()
        if isinstance(item._value, QuotedString):
            bare = parse(f"{key}={item.value()}")
            item = bare if bare.value() == item.value() and not bare.is_sweep_override() else item
        text = item.get_value_element_as_str()
        return f"{key}={text.lower() if isinstance(item.value(), bool) else text}"
    except HydraException:
        return override


def canonical_range(text: str) -> str:
    """A range such as interval(1e-4,1) with its numbers in one form, and without white space."""
    return NUMBER.sub(lambda match: _number(match.group()), re.sub(r"\s+", "", text))


def _number(text: str) -> str:
    return str(int(text)) if re.fullmatch(r"[-+]?[0-9]+", text) else repr(float(text))


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def varied(overrides: Sequence[str], arguments: Collection[str]) -> list[str]:
    """The overrides that the sweep varies, which are those that are not literally on the command line."""
    common = {canonical(item) for item in arguments if "=" in item}
    return [item for item in overrides if canonical(item) not in common and key_of(item) not in NOT_VARIED]


def job_name(overrides: Sequence[str]) -> str:
    """The folder name of a job. It depends only on the job, so that a longer sweep keeps its finished jobs.

    The name ends with a hash of the overrides if characters are replaced, if some file systems cannot distinguish names
    (capital letters, a final dot), or if the name would be too long.
    """
    text = ",".join(canonical_changes(overrides)) or "job"
    plain = PLAIN.fullmatch(text) and len(text) <= MAX_NAME and not text.endswith(".")
    return text if plain else hashed_job_name(overrides)


def hashed_job_name(overrides: Sequence[str]) -> str:
    """The beginning of the overrides and their hash."""

    text = ",".join(canonical_changes(overrides)) or "job"
    name = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", text)
    return f"{name[:MAX_NAME]}-{xxhash.xxh3_64_hexdigest(text.encode(errors='surrogatepass'))[:12]}"


def canonical_changes(overrides: Sequence[str]) -> list[str]:
    """The overrides that belong to a name, each in its one form."""
    return [canonical(item) for item in overrides if key_of(item) not in NOT_VARIED]


def earlier_job_name(overrides: Sequence[str]) -> str:
    """Returns the name of earlier versions, whose folders may hold finished jobs."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides)) or "job"
    if len(name) <= MAX_NAME:
        return name

    return f"{name[:MAX_NAME]}-{xxhash.xxh3_64_hexdigest(','.join(overrides).encode())[:8]}"
