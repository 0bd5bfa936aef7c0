"""Push: the keys of task=push."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Push(Task):
    """Uploads a saved model with its card to a model hub.

    folder: a run directory, whose FINAL is uploaded, or a saved model. repo: OWNER/NAME. license, datasets: for the card,
    such as apache-2.0 and hub ids; what else it states stands in the folder's rankpo.json. endpoint: another server
    than huggingface.co. The token is that of HF_TOKEN or `hf auth login`. The call returns the address of the repository.
    """

    folder: str
    repo: str
    private: bool = True
    license: str | None = None
    datasets: Sequence[str] = ()
    revision: str | None = None
    endpoint: str | None = None

    work: ClassVar[str] = "rankpo.tasks.work.push"
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.source / "rankpo.json").is_file():
            raise ValueError(f"folder={self.folder} is no run with a FINAL and no saved model of rankpo")

    @property
    def source(self) -> Path:
        """The folder of the saved model."""
        final = Path(self.folder) / "FINAL"
        return final if final.is_dir() else Path(self.folder)
