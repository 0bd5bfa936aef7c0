"""Listwise reranker with generation by vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from rankpo.models.engine.decoding import until
from rankpo.models.engine.vllm import open_engine

if TYPE_CHECKING:
    from rankpo.data.readers.requests import Request
    from rankpo.models.listwise.config import ListwiseKind
    from rankpo.models.listwise.inputs import ListwiseInputs
    from rankpo.models.listwise.ranked import RankedList


class VllmListwiseModel:
    """A listwise model in vLLM with the prompts, windows and answer parsing of `ListwiseModel`.

    arguments: further arguments of vllm.LLM, such as tensor_parallel_size. vLLM's prefix cache, on by default,
    processes the common beginning of prompts once.
    """

    kind = "listwise"
    # first_token needs the logits of all identifiers; vLLM hands out the log-probabilities of the likeliest tokens
    decode_modes = ("generate",)
    wave_tokens = 1 << 40  # vLLM forms its own batches.

    def __init__(
        self, config: ListwiseKind, inputs: ListwiseInputs, seed: int, arguments: Mapping[str, object]
    ) -> None:
        self.inputs = inputs
        self.settings = inputs.settings
        self.tokenizer = inputs.tokenizer
        longest = self.settings.max_length + self.settings.reasoning_tokens
        self.llm = open_engine(config, seed, longest, arguments)

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def write(self, prompts: Sequence[np.ndarray], budget: int) -> list[list[int]]:
        """Greedy continuations of at most `budget` tokens, without the end token."""
        from vllm import SamplingParams

        end = self.inputs.layout.end[-1]
        parameters = SamplingParams(temperature=0.0, max_tokens=budget, stop_token_ids=[end])
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        outputs = self.llm.generate(asked, parameters, use_tqdm=False)
        return [until(end, list(output.outputs[0].token_ids)) for output in outputs]

    def rerank(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """As `ListwiseModel.rerank`."""
        return [ranked.by_document() for ranked in self.rank_requests(requests)]

    def rank_requests(self, requests: Sequence[Request], on_window_error: str = "raise") -> list[RankedList]:
        """As `ListwiseModel.rank_requests`."""
        from rankpo.models.listwise.reranking import ListwiseReranker

        return ListwiseReranker(self, on_window_error=on_window_error).rank_requests(requests)
