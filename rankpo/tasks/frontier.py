"""Frontier: the keys of task=frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.evaluation.metrics import parse_metric
from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Frontier(Task):
    """Interpolates between a start model and trained models, and writes the best of them to `output`/FINAL.

    The best model has the highest agreement among those that keep the fraction `floor` of the start model's quality.
    frontier.json and frontier.html, in `output`, list all measured models.

    runs: run directories. soups: lists of run directories; the mean of the FINALs of each list is a trained model.
    priors: folders of models with a prior, such as those of task=prior. Each prior is added to every model, in place of
    its own prior if it has one.
    start: the model whose quality is kept; None takes the model that the runs started from.
    alphas: values in [0, 1] for weights (1 - α)·start + α·trained. layer_groups: the number of groups of layers; all
    combinations of one alpha for each group are tried.
    prior_weights: multiples of the weight that a prior was saved with; 0 removes the prior.
    kept, agreement: metrics such as jobs_dev/ndcg@20 and pairs/accuracy; None takes ndcg@20 of the first collection and
    the accuracy of the first preferences among eval_datasets.
    test: names of eval_datasets that take no part in the choice; they are measured for the start model and the chosen one.
    The call returns the rows of the table.
    """

    runs: Sequence[str] = ()
    soups: Sequence[Sequence[str]] = ()
    priors: Sequence[str] = ()
    start: str | None = None
    alphas: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
    layer_groups: int = 1
    prior_weights: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)
    floor: float = 0.98
    kept: str | None = None
    agreement: str | None = None
    metrics: Sequence[str] = ("ndcg@20", "recall@100")
    test: Sequence[str] = ()
    output: str = "frontier"

    work: ClassVar[str] = "rankpo.tasks.work.frontier"
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse_metric(name)
        if not (self.runs or self.soups or self.priors):
            raise ValueError("runs, soups and priors are all empty; set at least one, such as task.runs=[runs/run]")
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas must be numbers in [0, 1], got {list(self.alphas)}")
        if not self.prior_weights or not all(weight >= 0 for weight in self.prior_weights):
            raise ValueError(f"prior_weights must be numbers >= 0, got {list(self.prior_weights)}")
        if not self.floor >= 0:
            raise ValueError(f"floor must be >= 0, got {self.floor}")
        if self.layer_groups < 1:
            raise ValueError(f"layer_groups must be >= 1, got {self.layer_groups}")
        self._check_folders()

    def _check_folders(self) -> None:
        for soup in self.soups:
            if isinstance(soup, str) or len({Path(run).resolve() for run in soup}) < max(2, len(soup)):
                raise ValueError(f"soups must be lists of two different run directories or more, got {soup!r}")
        for run in (*self.runs, *(run for soup in self.soups for run in soup)):
            if not (Path(run) / "FINAL").is_dir():
                raise ValueError(f"{run} is not a run directory with a FINAL")
        for prior in self.priors:
            if not Path(prior).is_dir():
                raise ValueError(f"priors: {prior} is not a folder")
        if self.start is not None and not Path(self.start).is_dir():
            raise ValueError(f"start={self.start}: no such folder")
