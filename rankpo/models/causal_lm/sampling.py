"""Sampling of completions from a causal language model, with separate random numbers per completion.

A completion is a function of (seed, prompt id, number). It does not depend on its batch, on restarts or on the number
of processes, up to the rounding of a padded forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper
from transformers import TopPLogitsWarper as TopP

from rankpo.data.loaders.planner import cut
from rankpo.data.random_keys import random_keys, text_key
from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import plain_text
from rankpo.models.attention import plain_attention
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.engine.decoding import left_padded
from rankpo.models.engine.vllm import open_engine
from rankpo.types import Example, Prompt

if TYPE_CHECKING:
    from rankpo.models.causal_lm.config import CausalKind
    from rankpo.models.causal_lm.model import CausalLanguageModel

VLLM_BLOCK = 256  # Draws per call: enough to fill vLLM's batches, and the loss on a kill.


@dataclass(frozen=True)
class Draw:
    """A requested completion, number `number` of a prompt. ids: [T] int64 tokens before it."""

    prompt_id: str
    number: int
    prompt: Prompt
    ids: np.ndarray


@dataclass(frozen=True)
class Completion:
    """text: without the end of the turn. tokens: number of generated tokens. finished: whether it has an end token."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: divides the logits; 0 selects the likeliest token. top_p: samples from the smallest set of tokens
    with this probability. max_new_tokens: of a completion.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")

    def keys(self, draw: Draw, count: int) -> np.ndarray:
        """Returns `count` uint64 numbers that depend only on the draw."""
        return random_keys(count, self.seed, text_key(draw.prompt_id), draw.number)

    def numbers(self, draws: Sequence[Draw]) -> Tensor:
        """[n, max_new_tokens] float64 in [0, 1): 40 bits each, so that a product with a sum stays below the sum."""
        keys = np.stack([self.keys(draw, self.max_new_tokens) for draw in draws])
        return torch.from_numpy((keys >> np.uint64(24)).astype(np.float64) * 2.0**-40)


class Reader:
    """Conversion of prompts to token ids, and of generated tokens to text."""

    def __init__(self, inputs: CompletionInputs) -> None:
        self.inputs = inputs
        self.tokenizer: Any = inputs.tokenizer
        ending = inputs.chat.ending
        last = self.tokenizer(ending, add_special_tokens=False)["input_ids"][-1]
        self.stops = list(inputs.stops)
        # The template's text between a content and its end token, such as a line break.
        self.before_stop = ending.removesuffix(self._decode([last], special=True))
        # The template's text before a plain answer, such as the special tokens of a channel.
        self.opening = inputs.continuation.ids([inputs.chat.opening])[0]

    def ids(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Tokens of each prompt, cut as in training; behind them the desirable control token, where there is one.

        Raises BadRecord with the beginning of a prompt that the chat template refuses.
        """
        texts = []
        for prompt in prompts:
            try:
                texts.append(self.inputs.render(Example(prompt, (), (), ""))[0])
            except BadRecord as error:
                raise BadRecord(f"prompt {plain_text(prompt)[:60]!r}: {error}") from error
        control = [] if self.inputs.control is None else [self.inputs.control[0]]
        return [np.array([*ids, *control], dtype=np.int64) for ids in self.inputs.tokenize(texts)]

    def completion(self, draw: Draw, written: Sequence[int]) -> Completion:
        """Returns the completion in the tokens behind a prompt, up to the first end token."""
        end = next((place for place, token in enumerate(written) if token in self.stops), None)
        kept = list(written[:end])
        given, behind = draw.ids.tolist(), kept
        if not isinstance(draw.prompt, str) and self.opening and kept[: len(self.opening)] == self.opening:
            given, behind = given + self.opening, kept[len(self.opening) :]
        text = self._text(given, behind)
        if not isinstance(draw.prompt, str):
            if end is not None:
                text = text.removesuffix(self.before_stop)
            text = self.inputs.chat.content(draw.prompt, text)
        return Completion(text, len(kept) + (end is not None), end is not None)

    def _text(self, given: list[int], written: list[int]) -> str:
        """Decodes the text together with its prompt, since some tokenizers drop a leading blank."""
        before, whole = self._decode(given), self._decode(given + written)
        return whole[len(before) :] if whole.startswith(before) else self._decode(written)

    def _decode(self, ids: list[int], special: bool = False) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))


class Writer(ABC):
    """Generates draws batch by batch. plan: the batches as indices of draws, a function of the draws."""

    name: str
    reader: Reader

    @abstractmethod
    def plan(self, draws: Sequence[Draw]) -> list[np.ndarray]: ...

    @abstractmethod
    def write(self, draws: Sequence[Draw]) -> list[Completion]: ...


class TransformersWriter(Writer):
    """transformers' generate on left-padded batches of near-equal length.

    max_tokens: prompts and completions of a batch, all as long as they may get: what the cache of keys and values
    holds. context: what a forward pass runs under, such as autocast.
    """

    name = "transformers"

    def __init__(
        self,
        model: CausalLanguageModel,
        sampling: Sampling,
        max_tokens: int,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model = model.eval()
        # The checkpoint's defaults, such as a repetition penalty, must not change the policy.
        model.base.generation_config = GenerationConfig()
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.context = context
        self.reader = Reader(model.inputs)

    def plan(self, draws: Sequence[Draw]) -> list[np.ndarray]:
        costs = np.array([len(draw.ids) + self.sampling.max_new_tokens for draw in draws], dtype=np.int64)
        return cut(np.arange(len(draws)), costs, self.max_tokens)

    def write(self, draws: Sequence[Draw]) -> list[Completion]:
        ids, mask = left_padded([draw.ids for draw in draws], self.model.device)
        config = GenerationConfig(
            max_new_tokens=self.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=self.reader.stops,
            pad_token_id=self.reader.stops[0],
        )
        with plain_attention(self.model.base, self.model.packed) as base, self.context():
            output = base.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=self._processors(draws, ids.shape[1]),
            )
        written = output[:, ids.shape[1] :].tolist()
        return [self.reader.completion(draw, row) for draw, row in zip(draws, written, strict=True)]

    def _processors(self, draws: Sequence[Draw], width: int) -> LogitsProcessorList:
        sampling = self.sampling
        if sampling.temperature == 0:
            return LogitsProcessorList()
        chosen: list[object] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            chosen.append(TopP(float(sampling.top_p)))
        numbers = sampling.numbers(draws).to(self.model.device)
        return LogitsProcessorList([*chosen, ChosenByNumber(numbers, width)])


class ChosenByNumber(LogitsProcessor):
    """Draws from the softmax by each row's own numbers, [n, steps] in [0, 1): the inverse of the distribution function.

    transformers' sampling uses one random stream per batch, so that a row depends on its neighbours.
    width: tokens before the first step.
    """

    def __init__(self, numbers: Tensor, width: int) -> None:
        self.numbers = numbers
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[n, V]: 0 at the chosen token of each row, -inf elsewhere."""
        # The rounding error of a float32 sum of 100,000 probabilities exceeds the rarest of them.
        cumulative = scores.double().softmax(-1).cumsum(-1)  # [n, V]
        number = self.numbers[:, input_ids.shape[1] - self.width, None]
        chosen = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class VllmWriter(Writer):
    """vLLM in this process, with a seed for every draw; its kernels may round a row by its neighbours.

    arguments: further ones of vllm.LLM, such as tensor_parallel_size.
    """

    name = "vllm"

    def __init__(
        self, config: CausalKind, inputs: CompletionInputs, sampling: Sampling, arguments: Mapping[str, object]
    ) -> None:
        self.sampling = sampling
        self.reader = Reader(inputs)
        longest = inputs.settings.max_prompt_length + 1 + sampling.max_new_tokens
        self.llm = open_engine(config, sampling.seed, longest, arguments)

    def plan(self, draws: Sequence[Draw]) -> list[np.ndarray]:
        return [np.arange(start, min(start + VLLM_BLOCK, len(draws))) for start in range(0, len(draws), VLLM_BLOCK)]

    def write(self, draws: Sequence[Draw]) -> list[Completion]:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=self.sampling.max_new_tokens,
                seed=int(self.sampling.keys(draw, 1)[0] >> np.uint64(1)),
                stop_token_ids=self.reader.stops,
            )
            for draw in draws
        ]
        prompts = [{"prompt_token_ids": draw.ids.tolist()} for draw in draws]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        written = [list(output.outputs[0].token_ids) for output in outputs]
        return [self.reader.completion(draw, row) for draw, row in zip(draws, written, strict=True)]
