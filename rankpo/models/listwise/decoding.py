"""Decoding of a listwise reranker: identifier logits in one pass, free generation, or constrained generation.

Generation pads prompts on the left and runs all windows of a wave as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from rankpo.data.batch import join
from rankpo.models.attention import plain_attention
from rankpo.models.engine.body import body_of
from rankpo.models.engine.decoding import left_padded, until

if TYPE_CHECKING:
    from rankpo.models.listwise.ranked import ReadsIdentifiers


def first_logits(model: ReadsIdentifiers, prompts: Sequence[np.ndarray]) -> Tensor:
    """[n, window] identifier logits from one pass over each prompt, by the cheaper of two methods.

    The packed method processes every token. The shared method processes the common prefix once and pads the rest.
    """
    common = common_prefix(prompts)
    rest = max(len(prompt) for prompt in prompts) - common
    if common + len(prompts) * rest >= sum(len(prompt) for prompt in prompts):
        return model(join(prompts)).logits
    return _behind_prefix(model, prompts, common)


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """Returns the number of common first tokens of all prompts; every prompt keeps at least one further token."""
    size = min(len(prompt) for prompt in prompts) - 1
    equal = np.all(np.stack([prompt[:size] for prompt in prompts]) == prompts[0][:size], axis=0)
    return size if equal.all() else int(np.argmin(equal))


def _behind_prefix(model: ReadsIdentifiers, prompts: Sequence[np.ndarray], common: int) -> Tensor:
    rest = [prompt[common:] for prompt in prompts]
    lengths = torch.tensor([len(ids) for ids in rest], device=model.device)
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(part) for part in rest], batch_first=True)
    ids = ids.to(model.device)
    inside = torch.arange(ids.shape[1], device=model.device)[None] < lengths[:, None]
    places = common + torch.arange(ids.shape[1], device=model.device)[None].expand_as(ids)
    with plain_attention(model.base, model.packed) as base:
        prefix = torch.from_numpy(prompts[0][:common])[None].to(model.device)
        cache = body_of(base)(input_ids=prefix, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(prompts))
        mask = torch.cat([inside.new_ones(len(prompts), common), inside], dim=1)
        output = body_of(base)(
            input_ids=ids, attention_mask=mask.long(), position_ids=places, past_key_values=cache, use_cache=True
        )
    last = output.last_hidden_state[torch.arange(len(prompts), device=model.device), lengths - 1]  # [n, D]
    return model.identifier_logits(last)


def write(model: ReadsIdentifiers, prompts: Sequence[np.ndarray], budget: int) -> list[list[int]]:
    """Greedy continuations of at most `budget` tokens, without the end token.

    The checkpoint's sampling settings are ignored, since an unintended temperature of 1 lowers nDCG by points.
    """

    end = model.inputs.layout.end[-1]
    ids, mask = left_padded(prompts, model.device)
    config = GenerationConfig(max_new_tokens=budget, do_sample=False, pad_token_id=end, eos_token_id=end)
    with plain_attention(model.base, model.packed) as base:
        output = base.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [until(end, row) for row in output[:, ids.shape[1] :].tolist()]


def constrained(model: ReadsIdentifiers, prompts: Sequence[np.ndarray], counts: Sequence[int]) -> list[list[int]]:
    """Returns permutations of the identifiers: greedy among the remaining ones, with fixed separators.

    counts: passages of each prompt. The last passage is not generated.
    """
    own = model.inputs.layout.identifiers
    first = torch.tensor(own.first, device=model.device)
    later = torch.tensor(own.later, device=model.device)
    ids, mask = left_padded(prompts, model.device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    sizes = torch.tensor(counts, device=model.device)
    left = torch.arange(len(own), device=model.device)[None] < sizes[:, None]  # [n, window]
    between = torch.tensor(own.between, device=model.device, dtype=torch.long)
    chosen: list[Tensor] = []
    cache = None
    with plain_attention(model.base, model.packed) as base:
        for step in range(max(counts)):
            output = base(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            allowed = (first if step == 0 else later)[None].expand(len(prompts), -1)
            logits = output.logits[:, -1].float().gather(1, allowed)
            pick = logits.masked_fill(~left, -torch.inf).argmax(1)  # 0, unused, in finished rows.
            chosen.append(pick)
            left = left.scatter(1, pick[:, None], False)
            ids = torch.cat([allowed.gather(1, pick[:, None]), between[None].expand(len(prompts), -1)], dim=1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            places = places[:, -1:] + 1 + torch.arange(ids.shape[1], device=model.device)[None]
    picked = torch.stack(chosen, dim=1).tolist()
    return [row[:count] for row, count in zip(picked, counts, strict=True)]
