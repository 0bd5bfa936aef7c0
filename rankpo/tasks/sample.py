"""Sample: the keys of task=sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from rankpo.data.readers import files
from rankpo.models.engine.backends import check_backend
from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Sample(Task):
    """Generates completions, and writes `output`/samples.jsonl (HALOs' format) and alpaca_eval.json.

    task=annotate reads samples.jsonl. alpaca_eval.json holds the first completion of each prompt.

    prompts: a file of prompts to use instead of those of the datasets; equal prompts are used once.
    num_samples: completions of each prompt. max_tokens: tokens of a batch.
    backend: `transformers`, `vllm`, or `auto`. vllm: arguments of vllm.LLM.
    generator: the name of the model in AlpacaEval's format; None takes exp_name.
    Each batch is appended to draws-<rank>.jsonl before the next one begins. A second start continues, also with more
    samples, prompts or processes. The call returns the table's row on the first rank, and {} on the others.
    """

    prompts: str | None = None
    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    max_tokens: int = 32768
    backend: str = "auto"
    vllm: Mapping[str, object] = field(default_factory=dict)
    generator: str | None = None
    limit: int | None = None
    output: str = "sample"

    work: ClassVar[str] = "rankpo.tasks.work.sample"
    in_place_of_datasets: ClassVar[str] = "task.prompts"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_backend(self.backend)
        for name in ("num_samples", "max_new_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"temperature=0 gives equal completions; num_samples must be 1, got {self.num_samples}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.prompts is not None:
            files.find(self.prompts, "prompts")

    def reads_datasets(self) -> bool:
        return self.prompts is None
