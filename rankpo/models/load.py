"""Loading of saved models: `rankpo.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankpo.models.kinds import kind_class
from rankpo.models.loading import LoadingError
from rankpo.models.saved import saved_class, saved_kind


def load_saved(path: str, device: str | None = None) -> Any:
    """See `rankpo.load`."""
    if not Path(path).is_dir():
        raise LoadingError(f"{path}: no such folder")
    try:
        kind = kind_class(saved_kind(Path(path)), saved_class(Path(path)))(load_from=path)
    except ValueError as error:
        raise LoadingError(str(error)) from error
    model = kind.build(kind.open_inputs(ignore), ignore)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def ignore(line: str) -> None:
    """Ignores the lines that opening and building a model say."""
