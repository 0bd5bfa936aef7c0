"""Tensors of model folders, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rankpo.errors import LoadingError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name. Raises LoadingError for a damaged file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LoadingError(f"{path} is damaged ({error}); copy it again") from error
