"""Last layer of a packed body for one token of each sequence, where the model pools that token alone.

No result depends on the last layer's states of other tokens. Keys and values are therefore computed for all tokens, and
queries, attention, output projection and MLP for the pooled tokens. The layers of BERT's and Llama's form are known by
name; a trial on two short sequences compares them with the whole layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from rankpo.models.engine import varlen
from rankpo.models.engine.packing import PACKED_SDPA, attended_mask, packed_arguments, position_offset
from rankpo.models.engine.pooling import place_of_token


@dataclass(frozen=True, kw_only=True, eq=False)
class OneToken:
    """The token of each packed sequence whose state the last layer computes.

    places: [n] rows of the packed tokens, one of each sequence. lengths: of the sequences. attended: the number of first
    tokens of each sequence that can be attended to, None for all. borders: [n + 1] int32, the first token of each
    sequence and the number of tokens.
    """

    places: Tensor
    lengths: Sequence[int]
    borders: Tensor
    attended: Sequence[int] | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        """Attention of each token to its whole sequence. query: [1, n, heads, d]; key, value: [1, S, key heads, d].

        Returns [1, n, heads · d].
        """
        if self.attended is None and varlen.fits(query.transpose(1, 2), dropout):
            return self._in_one_call(query, key, value, scale)
        runs = [(length, len(list(group))) for length, group in groupby(self.lengths)]
        sizes = [length * count for length, count in runs]
        queries = query[0].split([count for _, count in runs])
        outputs, first = [], 0
        for (length, count), q, k, v in zip(runs, queries, key[0].split(sizes), value[0].split(sizes), strict=True):
            k, v = (part.reshape(count, length, *part.shape[1:]).transpose(1, 2) for part in (k, v))
            seen = None if self.attended is None else self.attended[first : first + count]
            mask = None if seen is None else attended_mask(length, seen, False, None, q.device)
            grouped = key.shape[2] != query.shape[2]
            output = scaled_dot_product_attention(q[:, :, None], k, v, mask, dropout, scale=scale, enable_gqa=grouped)
            outputs.append(output.flatten(1))  # [count, heads · d]
            first += count
        return torch.cat(outputs)[None]

    def _in_one_call(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        own = torch.arange(query.shape[1] + 1, dtype=torch.int32, device=query.device)
        spans = varlen.Spans(queries=own, keys=self.borders, longest_query=1, longest_key=max(self.lengths))
        pattern = varlen.Pattern(causal=False, scale=scale)
        return varlen.attend_spans(query[0], key[0], value[0], spans, pattern).flatten(1)[None]


def of_bert(layer: Any, hidden: Tensor, token: OneToken, **_: object) -> Tensor:
    """[1, n, D] states of the tokens after a layer of BERT's form. hidden: [1, S, D]."""
    attention = layer.attention
    inner = attention.self
    own = hidden[:, token.places]
    width = inner.attention_head_size
    query, key, value = (
        states.unflatten(-1, (-1, width)) for states in (inner.query(own), inner.key(hidden), inner.value(hidden))
    )
    dropout = inner.dropout.p if layer.training else 0.0
    attended = token.attend(query, key, value, inner.scaling, dropout)
    return layer.feed_forward_chunk(attention.output(attended, own))


def of_llama(
    layer: Any, hidden: Tensor, token: OneToken, position_embeddings: tuple[Tensor, Tensor], **_: object
) -> Tensor:
    """[1, n, D] states of the tokens after a layer of Llama's form. hidden: [1, S, D]."""
    inner, places = layer.self_attn, token.places
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        states.unflatten(-1, (-1, inner.head_dim))
        for states in (inner.q_proj(normed[:, places]), inner.k_proj(normed), inner.v_proj(normed))
    )
    if type(layer).__name__.endswith("Qwen3DecoderLayer"):
        query, key = inner.q_norm(query), inner.k_norm(key)
    cosine, sine = (part[:, :, None] for part in position_embeddings)  # [1, S, 1, d]
    query, key = _rotated(query, cosine[:, places], sine[:, places]), _rotated(key, cosine, sine)
    dropout = inner.attention_dropout if layer.training else 0.0
    own = hidden[:, places] + inner.o_proj(token.attend(query, key, value, inner.scaling, dropout))
    return own + layer.mlp(layer.post_attention_layernorm(own))


Compute = Callable[..., Tensor]
FORMS: dict[str, Compute] = {
    "BertLayer": of_bert,
    "RobertaLayer": of_bert,
    "XLMRobertaLayer": of_bert,
    "CamembertLayer": of_bert,
    "ElectraLayer": of_bert,
    "LlamaDecoderLayer": of_llama,
    "MistralDecoderLayer": of_llama,
    "Qwen2DecoderLayer": of_llama,
    "Qwen3DecoderLayer": of_llama,
}


class LastLayer:
    """The forward pass of a body's last layer, which computes one token of each sequence if it is given `one_token`."""

    def __init__(self, layer: nn.Module, compute: Compute) -> None:
        self.layer, self.compute = layer, compute

    def __call__(
        self, hidden_states: Tensor, *given: object, one_token: OneToken | None = None, **named: Any
    ) -> Tensor:
        if one_token is None:
            return type(self.layer).forward(self.layer, hidden_states, *given, **named)
        return self.compute(self.layer, hidden_states, one_token, **named)


def shorten_last_layer(body: PreTrainedModel, pooling: str) -> bool:
    """Lets the last layer compute the pooled token alone; returns whether it can, from a trial on two short sequences.

    body: with packed attention. pooling: as of `pool`. A body that cannot is not changed.
    """
    layers = _layers(body)
    if pooling not in ("cls", "last") or body.config._attn_implementation != PACKED_SDPA or layers is None:
        return False
    last = layers[-1]
    compute = FORMS.get(type(last).__name__)
    causal = any(getattr(module, "is_causal", False) for module in last.modules())
    if compute is None or (causal and pooling == "cls") or _has_window(body, last):
        return False
    last.forward = LastLayer(last, compute)
    if _proved(body, pooling):
        return True
    del last.forward
    return False


def one_token(lengths: Tensor, places: Tensor, attended: Tensor | None, device: torch.device) -> OneToken:
    """The tokens at `places` [n] of packed sequences of these lengths [n], which are sorted."""
    borders = torch.nn.functional.pad(torch.cumsum(lengths, 0), (1, 0)).to(device, torch.int32, non_blocking=True)
    limits = None if attended is None else attended.tolist()
    return OneToken(
        places=places.to(device, non_blocking=True), lengths=lengths.tolist(), borders=borders, attended=limits
    )


@torch.no_grad()
def _proved(body: PreTrainedModel, pooling: str) -> bool:
    """Whether the short last layer gives the states of the whole one, on two short sequences."""
    device = next(body.parameters()).device
    ids = (torch.arange(11, 18, device=device) * 7) % body.config.get_text_config().vocab_size
    lengths = torch.tensor([4, 3])
    places = place_of_token(lengths, pooling)
    assert places is not None
    arguments = packed_arguments(lengths, device, position_offset(body))
    training = body.training
    body.eval()
    try:
        whole = (
            body(input_ids=ids[None], **arguments).last_hidden_state[0, places.to(device, non_blocking=True)].float()
        )
        token = one_token(lengths, places, None, device)
        short = body(input_ids=ids[None], **arguments, one_token=token).last_hidden_state[0].float()
    except (TypeError, ValueError, AttributeError):
        return False
    finally:
        body.train(training)
    tolerance = 1e-4 if body.dtype == torch.float32 else 5e-2
    return short.shape == whole.shape and torch.allclose(short, whole, atol=tolerance, rtol=tolerance)


def _layers(body: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of a body in their order, or None for a body of another form."""
    owner = getattr(body, "encoder", body)
    layers = getattr(owner, "layer", None) or getattr(owner, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) and len(layers) else None


def _has_window(body: PreTrainedModel, last: nn.Module) -> bool:
    """Whether the last layer attends within a window. Mistral's window is that of all layers."""
    config = body.config.get_text_config()
    types = getattr(config, "layer_types", None)
    return types[-1] != "full_attention" if types else getattr(config, "sliding_window", None) is not None


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [1, n, heads, d]. cosine, sine: [1, n, 1, d]."""
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat([-second, first], dim=-1) * sine
