"""Packed attention: many sequences in one row of tokens, without padding and masks.

Linear layers process [1, S]. On CUDA in half precision, attention is one variable-length kernel call a layer (`varlen`),
and one FlexAttention call (`flex`) in float32 and for head sizes and masks that this kernel lacks. Elsewhere it runs once per group of neighbours of equal length (sequences are sorted by length) without a mask, so that
SDPA can use its fastest kernel. The arguments are those of transformers' padding-free flash attention; with
`flash_attention_2` the same call uses transformers' kernel.
LOG.md, 2026-11-21, compares it with padded chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rankpo.models.engine import flex, varlen
from rankpo.models.engine.kept_attention import kept_attention
from rankpo.models.engine.prompt_trees import PackedTrees, tree_sdpa

PACKED_SDPA = "rankpo_packed_sdpa"
PACKED_FLEX = "rankpo_packed_flex"
PACKED = {"sdpa": PACKED_SDPA, "flex_attention": PACKED_FLEX}


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    sequence_lengths: Sequence[int] | None = None,
    attended_lengths: Sequence[int] | None = None,
    trees: PackedTrees | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """SDPA within each packed sequence. query: [1, heads, S, d]; key, value: [1, key heads, S, d].

    Returns [1, S, heads, d]. sequence_lengths: lengths of the packed sequences in order; attended_lengths: the number of
    first tokens of each sequence that can be attended to, None for all; trees: sequences with shared prefixes instead. Raises
    ValueError for soft caps, position biases and attention sinks, which need padding.
    """
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}; set model.layout=padded")
    if trees is not None:
        return tree_sdpa(query, key, value, trees, window_mask, dropout, scaling, sliding_window), None
    if sequence_lengths is None:
        raise ValueError("packed attention was called without sequence_lengths; this model drops unknown arguments")
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    pattern = varlen.Pattern(causal=causal, window=sliding_window, scale=scaling, attended=attended_lengths)
    borders, documents = kwargs.get("cu_seq_lens_q"), kwargs.get("documents")
    way = kwargs.get("way") or implementation(query, dropout, pattern)
    if way == "varlen" and isinstance(borders, Tensor):
        return varlen.attend(query, key, value, borders, max(sequence_lengths), pattern), None
    if way == "flex" and isinstance(documents, flex.Documents):
        if dropout:
            raise ValueError("model.attn_implementation=flex_attention has no dropout of attention; set it to sdpa")
        return flex.attend(query, key, value, documents, pattern), None
    return attend_by_length(query, key, value, sequence_lengths, pattern, dropout), None


def implementation(query: Tensor, dropout: float, pattern: varlen.Pattern) -> str:
    """The fastest way that fits: `varlen`, `flex`, or `lengths`, which runs everywhere."""
    if pattern.attended is None and varlen.fits(query, dropout):
        return "varlen"
    return "flex" if flex.fits(query, dropout) else "lengths"


def attend_by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    pattern: varlen.Pattern,
    dropout: float = 0.0,
) -> Tensor:
    """SDPA once per group of neighbours of equal length; shapes as in `packed_sdpa`. Returns [1, S, heads, d]."""
    grouped = key.shape[1] != query.shape[1]
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # One split per tensor, because the backward of each slice would write a zero tensor of full size.
    parts = zip(runs, *(tensor[0].transpose(0, 1).split(sizes) for tensor in (query, key, value)), strict=True)
    outputs, first = [], 0
    for (length, count), *parts_of_run in parts:
        q, k, v = (part.reshape(count, length, *part.shape[1:]).transpose(1, 2) for part in parts_of_run)
        mask = window_mask(length, pattern.window, pattern.causal, q.device)
        if pattern.attended is not None:
            mask = attended_mask(length, pattern.attended[first : first + count], pattern.causal, mask, q.device)
        first += count
        within = pattern.causal and mask is None and length > 1
        kept = kept_attention(q, mask, dropout)
        if kept is not None:
            output = kept.attend(q, k, v, within, pattern.scale)  # [count, heads, length, d]
        else:
            output = scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=within, scale=pattern.scale, enable_gqa=grouped
            )
        outputs.append(output.transpose(1, 2).reshape(count * length, *output.shape[1::2]))
    # A single long sequence is not copied, since autograd would keep the copy.
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def window_mask(length: int, window: int | None, causal: bool, device: torch.device) -> Tensor | None:
    """Returns [length, length] bool, True where attention is allowed, or None if the window covers everything.

    With window w a token attends to itself and w - 1 tokens before it, in bidirectional attention also to w - 1 tokens
    behind it. This is flash attention's definition, which transformers' attention functions use (ModernBERT adds 1 to
    the value of its configuration).
    """
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def attended_mask(
    length: int, attended: Sequence[int], causal: bool, window: Tensor | None, device: torch.device
) -> Tensor | None:
    """Returns [count, 1, length or 1, length] bool for sequences of equal length, or `window` if no token is masked.

    attended: the number of first tokens of each sequence that can be attended to. window: the mask of `window_mask`.
    """
    if min(attended) >= length:
        return window
    position = torch.arange(length, device=device)
    mask = (position < torch.tensor(attended).to(device, non_blocking=True)[:, None])[:, None, None]
    if window is not None:
        return mask & window
    return mask & (position[:, None] >= position) if causal else mask


def packed_arguments(
    lengths: Tensor, device: torch.device, position_offset: int, attended: Tensor | None = None
) -> dict[str, object]:
    """Keyword arguments of a packed forward pass. lengths: [n] on the CPU, sorted. attended: as `Sequences.attended`."""
    sizes, limits = lengths.tolist(), None if attended is None else attended.tolist()
    starts = torch.cumsum(lengths, 0) - lengths
    position_ids = torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths) + position_offset
    borders = torch.nn.functional.pad(torch.cumsum(lengths, 0), (1, 0)).to(device, torch.int32, non_blocking=True)
    limited = {} if limits is None else {"attended_lengths": limits}
    return {
        **limited,
        "documents": flex.Documents(sizes, device, limits),
        "position_ids": position_ids.unsqueeze(0).to(device, non_blocking=True),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(sizes),
        "max_length_k": max(sizes),
        "sequence_lengths": sizes,
    }


def padding(lengths: Tensor, attended: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the attention mask [n, T] int64 of padded sequences, and the places of their tokens among the n · T.

    lengths, attended: [n] on the CPU; see `Sequences`. An index by a mask would make the CPU wait until the GPU has counted the tokens.
    """
    places = torch.arange(int(lengths.max()))
    mask = (places < attended[:, None]).long()
    filled = (places < lengths[:, None]).flatten().nonzero().squeeze(1)
    return mask.to(device, non_blocking=True), filled.to(device, non_blocking=True)


def position_offset(backbone: PreTrainedModel) -> int:
    """Returns the position id of a first token: pad id + 1 for RoBERTa and related models, else 0."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


@torch.no_grad()
def can_pack(backbone: PreTrainedModel, attn_implementation: str) -> bool:
    """Whether this architecture gives the same hidden states with and without packing, tested on two short sequences.

    Architectures with relative position biases, soft caps or custom attention code need padding.
    """
    if attn_implementation == "eager" or not getattr(backbone, "_supports_attention_backend", False):
        return False
    if "chunked_attention" in (getattr(backbone.config.get_text_config(), "layer_types", None) or ()):
        return False  # Llama 4 attends within long blocks of positions, which the test would miss.
    vocabulary = backbone.config.get_text_config().vocab_size
    device = next(backbone.parameters()).device
    if attn_implementation == "flash_attention_2" and device.type != "cuda":
        return True  # The kernel runs only on a GPU, so the test below is not possible here.
    ids = (torch.arange(11, 18, device=device) * 7) % vocabulary
    lengths = torch.tensor([3, 4])
    training = backbone.training
    backbone.eval()
    try:
        packed = backbone(input_ids=ids[None], **packed_arguments(lengths, device, position_offset(backbone)))
        alone = [
            backbone(
                input_ids=part[None], **packed_arguments(torch.tensor([len(part)]), device, position_offset(backbone))
            )
            for part in ids.split(lengths.tolist())
        ]
        plain = [_plain(backbone, part) for part in ids.split(lengths.tolist())]
    except (TypeError, ValueError):
        return False
    finally:
        backbone.train(training)
    together = packed.last_hidden_state[0].float()
    separate = torch.cat([output.last_hidden_state[0] for output in alone]).float()
    tolerance = 1e-4 if together.dtype == torch.float32 else 5e-2
    return bool(
        torch.allclose(together, separate, atol=tolerance, rtol=tolerance)
        and torch.allclose(together, torch.cat(plain).float(), atol=tolerance, rtol=tolerance)
    )


@torch.no_grad()
def mixes_padding(backbone: PreTrainedModel) -> bool:
    """Whether padding changes the hidden states of a sequence, as in models with convolutions over tokens (ConvBERT)
    or Fourier transforms (FNet). Tested on a short sequence beside a longer one.

    Raises ValueError for models that shorten their sequences, such as Funnel without its decoder.
    """
    if backbone.config._attn_implementation == "flash_attention_2" and backbone.device.type != "cuda":
        return False  # The kernel runs only on a GPU, so the test is not possible here.
    vocabulary = backbone.config.get_text_config().vocab_size
    ids = (torch.arange(11, 18, device=backbone.device) * 7) % vocabulary
    short = torch.cat([ids[:3], ids.new_zeros(4)])
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4], device=backbone.device)
    training = backbone.training
    backbone.eval()
    try:
        beside = backbone(input_ids=torch.stack([ids, short]), attention_mask=mask).last_hidden_state[1, :3].float()
        alone = backbone(input_ids=ids[None, :3]).last_hidden_state[0].float()
    except (TypeError, ValueError):
        return False
    finally:
        backbone.train(training)
    if len(alone) != 3:
        raise ValueError(
            f"{type(backbone).__name__} returns {len(alone)} hidden states for 3 tokens, but every token needs one of "
            "its own; choose a model that does not shorten its sequences"
        )
    tolerance = 1e-4 if backbone.dtype == torch.float32 else 5e-2
    return not torch.allclose(beside, alone, atol=tolerance, rtol=tolerance)


def _plain(backbone: PreTrainedModel, ids: Tensor) -> Tensor:
    """Hidden states [T, D] of one sequence by transformers' own attention."""
    packed = backbone.config._attn_implementation
    backbone.config._attn_implementation = "sdpa"
    try:
        return backbone(input_ids=ids[None]).last_hidden_state[0]
    finally:
        backbone.config._attn_implementation = packed


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionInterface.register(PACKED_FLEX, partial(packed_sdpa, way="flex"))


def switch_to_packed(backbone: PreTrainedModel) -> bool:
    """Enables packed attention if the architecture supports it, and returns whether it does."""
    asked = backbone.config._attn_implementation
    if asked in PACKED:
        backbone.config._attn_implementation = PACKED[asked]
    if can_pack(backbone, asked):
        return True
    backbone.config._attn_implementation = asked
    return False
