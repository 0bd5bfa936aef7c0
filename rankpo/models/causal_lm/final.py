"""Training-time template, end tokens and settings in FINAL of a causal language model or a reward model."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

from transformers import GenerationConfig

from rankpo.data.text.rendering import ended_at, with_generation_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.causal_lm.inputs import CompletionInputs


def final_tokenizer(inputs: CompletionInputs, whole_conversations: bool = False) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with the template of training.

    Its generation prompt ends with the desirable control token, where there is one. whole_conversations: the template
    ends a whole conversation where a reward was trained, also where the tokenizer's puts a line break behind the end token.
    """
    tokenizer = copy.deepcopy(inputs.tokenizer)
    template = inputs.chat.template
    if inputs.control is not None:
        template = with_generation_prompt(template, str(tokenizer.convert_ids_to_tokens(inputs.control[0])))
    if whole_conversations and inputs.chat.tail != inputs.chat.ending:
        template = ended_at(template, inputs.chat.tail, inputs.chat.ending)
    tokenizer.chat_template = template
    return tokenizer


def final_settings(inputs: CompletionInputs, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The settings as rankpo.json holds them, with the template of training where FINAL's tokenizer has another."""
    settings = inputs.settings.to_json()
    differs = tokenizer.chat_template != inputs.chat.template
    return {**settings, "chat_template": inputs.chat.template} if differs else settings


def final_generation_config(backbone: PreTrainedModel, inputs: CompletionInputs) -> GenerationConfig:
    """Returns the model's generation config with the end tokens of training added."""
    config = copy.deepcopy(backbone.generation_config)
    if config is None:
        config = GenerationConfig()
    own = config.eos_token_id
    ends = sorted({*inputs.stops, *([own] if isinstance(own, int) else own or [])})
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    return config


def control_lines(inputs: CompletionInputs) -> list[str]:
    """Returns the card's lines on control tokens."""
    if inputs.settings.control_tokens is None:
        return []
    good, bad = inputs.settings.control_tokens
    return [
        f"It was trained behind control tokens: {json.dumps(good)} before desirable completions, {json.dumps(bad)} before",
        "others. The chat template's generation prompt ends with the first; behind a plain prompt, write it yourself.",
    ]
