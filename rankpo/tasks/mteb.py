"""The task mteb: a model on tasks of the MTEB benchmark, by the package mteb, with result files of its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Mteb(Task):
    """Evaluates a model that gives vectors, or a reranker.

    tasks: names of mteb. prompts: a query prompt by the name of a task, in place of the model's. languages: ISO codes of
    the parts of tasks in several languages; None for all. output: the folder of the result files. name: of the model in
    them. Raises ValueError where the package is missing or no task is named.
    """

    tasks: Sequence[str] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    languages: Sequence[str] | None = None
    output: str = "mteb"
    name: str = "rankpo/model"

    work: ClassVar[str] = "rankpo.tasks.work.mteb"
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if find_spec("mteb") is None:
            raise ValueError("the package mteb is not installed: pip install 'rankpo[mteb]'")
        if not self.tasks:
            raise ValueError("tasks is empty; name tasks of mteb, such as task.tasks=[SciFact,STSBenchmark]")
        if unknown := sorted(set(self.prompts) - set(self.tasks)):
            raise ValueError(f"prompts.{unknown[0]} is for no task of task.tasks={list(self.tasks)}")
