"""Fingerprints of saved models, computed from their files without loading them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import xxhash

from rankpo.models.loading import Source
from rankpo.storage.folders import checksum

TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "added_tokens", "spiece")
WEIGHTS = (".safetensors", ".json")
LEFT_OUT = ("manifest.json", "generation_config.json", "README.md")  # These files contain no trained values.


def of_source(source: Source) -> dict[str, str]:
    """Returns {"weights": …, "tokenizer": …}, digests of the files in a checkpoint's folder."""
    folder = Path(source.folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "adapter" not in path.parts[-2:-1])
    tokens = [path for path in files if path.name.startswith(TOKENIZER)]
    weights = [p for p in files if p not in tokens and p.suffix in WEIGHTS and p.name not in LEFT_OUT]
    return {"weights": _digest(folder, weights), "tokenizer": _digest(folder, tokens)}


def _digest(folder: Path, files: list[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in files:
        stamp = path.stat()
        digest.update(
            f"{path.relative_to(folder).as_posix()} {_of_file(path, stamp.st_size, stamp.st_mtime_ns)}".encode()
        )
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _of_file(path: Path, size: int, time: int) -> str:
    """Returns the checksum of a file, cached by its size and modification time."""
    return checksum(path)
