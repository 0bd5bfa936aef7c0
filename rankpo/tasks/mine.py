"""Mine: the keys of task=mine."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.tasks.base import Task

FORMATS = ("contrastive", "pos_neg", "triplet", "n_tuple", "labeled_list", "ids")


@dataclass(frozen=True, kw_only=True)
class Mine(Task):
    """Mines hard negatives, by the settings of `mining`, for every query of `datasets` that has a positive.

    output: the training file. NAME.meta.jsonl and statistics.json are written to the same folder; format=ids adds
    NAME.corpus.jsonl with the texts of the ids.
    format: the form of a line. Equal queries are merged into one line with the positives of all their rows.
    The same command, started again, completes the files that a full disk or a killed process left unfinished.
    Raises ConfigError if an input would be overwritten, or an earlier output without overwrite=true. The call returns
    the content of statistics.json.
    """

    output: str = "mined.jsonl"
    format: str = "contrastive"

    work: ClassVar[str] = "rankpo.tasks.work.mine"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"output must end in .jsonl, got {self.output!r}")

    @property
    def _beside(self) -> tuple[str, ...]:
        return ("meta", "corpus") if self.format == "ids" else ("meta",)

    def targets(self, variants: Iterable[str]) -> dict[str, Path]:
        """The training file of each variant of the settings."""
        path = Path(self.output)
        return {name: path.with_name(f"{path.stem}{name}.jsonl") for name in variants}

    def outputs(self, targets: Collection[Path]) -> list[Path]:
        """All files that the task writes, in the order in which they are written."""
        beside = [path.with_suffix(f".{kind}.jsonl") for path in targets for kind in self._beside]
        return [*targets, *beside, statistics_file(Path(self.output))]

    def reads_datasets(self) -> bool:
        return True


def statistics_file(output: Path) -> Path:
    """statistics.json beside mined.jsonl; NAME.statistics.json beside another name."""
    return output.with_name("statistics.json" if output.stem == "mined" else f"{output.stem}.statistics.json")
