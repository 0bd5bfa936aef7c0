"""Loading of saved models: `rankpo.load`."""

from __future__ import annotations

from pathlib import Path

from rankpo.errors import ConfigError
from rankpo.models.base import RankingModel
from rankpo.models.kinds import kind_class
from rankpo.models.loading import LoadingError, resolve
from rankpo.models.saved import RECORD, read_json, saved_class, saved_kind
from rankpo.runs.devices import device_kind

OF_THE_FORMAT = ("kind", "kind_class", "format", "settings")  # Entries of rankpo.json that every save writes anew.


def load_saved(path: str, device: str | None = None) -> RankingModel:
    """See `rankpo.load`."""
    is_folder = Path(path).is_dir()
    if not is_folder and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise LoadingError(f"{path}: no such folder")
    try:
        folder = Path(resolve(path).folder)
        kind_of = kind_class(saved_kind(folder), saved_class(folder))
        kind = kind_of(load_from=path) if is_folder else kind_of(name_or_path=path)
    except ConfigError:
        raise
    except ValueError as error:
        raise LoadingError(str(error)) from error
    model = kind.build(kind.open_inputs(ignore), ignore)
    model.description = description_of(folder)
    return model.to(device or device_kind()).eval()


def description_of(folder: Path) -> dict[str, object]:
    """Returns the description of training in a folder's rankpo.json; {} for folders of other libraries."""
    return {name: value for name, value in read_json(folder / RECORD).items() if name not in OF_THE_FORMAT}


def ignore(line: str) -> None:
    """Ignores progress lines, for a second build of a model and for `rankpo.load`."""
