"""StaticModel: token embeddings without layers above them, as in StaticEmbedding of sentence-transformers and model2vec.

The backbone is a model of transformers, so that it is trained, saved and loaded as the others are. No special
tokens are added to texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from rankpo.errors import LoadingError
from rankpo.models.frozen import WeightForm
from rankpo.models.st_folders import STATIC, read_modules
from rankpo.models.tensors import read_tensors
from rankpo.models.weight_types import torch_dtype

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
PADS, UNKNOWNS = ("[PAD]", "<pad>"), ("[UNK]", "<unk>")


class StaticConfig(PreTrainedConfig):
    """vocab_size: rows of the table. hidden_size: its columns."""

    model_type = "rankpo_static"

    def __init__(self, vocab_size: int = 1, hidden_size: int = 1, **more: Any) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 0
        super().__init__(**more)


class StaticModel(PreTrainedModel):
    """The hidden state of a token is its row of the table."""

    config_class = StaticConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True  # There is no attention, so that packing changes nothing.

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embedding = value

    def forward(self, input_ids: Tensor, **_: object) -> BaseModelOutput:
        """The states [N, T, D] of ids [N, T]. Masks and positions, which callers of all backbones give, change nothing."""
        states: Tensor = self.embedding(input_ids)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


AutoConfig.register(StaticConfig.model_type, StaticConfig)
AutoModel.register(StaticConfig, StaticModel)


def is_static(folder: Path) -> bool:
    """Whether the first module of a checkpoint is a StaticEmbedding."""
    first = next(iter(read_modules(folder)), None)
    return first is not None and first.name == STATIC


def static_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a StaticEmbedding, which adds no special tokens."""
    backend = _backend(folder)
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    known = backend.get_vocab()
    named = {
        role: next((name for name in names if name in known), None)
        for role, names in (("pad_token", PADS), ("unk_token", UNKNOWNS))
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{role: name for role, name in named.items() if name})


def _backend(folder: Path) -> Tokenizer:
    if not (folder / TOKENIZER).exists():
        raise LoadingError(f"{folder} has no {TOKENIZER}, which a {STATIC} needs")
    return Tokenizer.from_file(str(folder / TOKENIZER))


def load_static(name: str, folder: Path, form: WeightForm) -> StaticModel:
    """The model of a StaticEmbedding's folder. Raises LoadingError for missing weights and for quantisation."""
    if form.quantization is not None:
        raise LoadingError(f"{name} holds static token embeddings; set model.quantization to null")
    path = folder / WEIGHTS
    if not path.exists():
        raise LoadingError(f"{folder} has no {WEIGHTS}; rankpo does not open pickled weights (*.bin)")
    table = _table(read_tensors(path), path)
    model = StaticModel(StaticConfig(vocab_size=table.shape[0], hidden_size=table.shape[1]))
    with torch.no_grad():
        model.embedding.weight.copy_(table)
    made: StaticModel = model.eval().to(dtype=torch_dtype(form, None))  # type: ignore[call-overload]
    return made


def _table(tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    """The table [V, D]. model2vec stores `embeddings`, and where tokens share rows, `mapping` and `weights` of tokens."""
    if set(tensors) == {"embedding.weight"}:
        return tensors["embedding.weight"].float()
    if "embeddings" not in tensors or not set(tensors) <= {"embeddings", "mapping", "weights"}:
        raise LoadingError(f"{path} holds the tensors {', '.join(sorted(tensors))}; a {STATIC} has embedding.weight")
    table = tensors["embeddings"]
    if "mapping" in tensors:
        table = table[tensors["mapping"].long()]
    if "weights" in tensors:
        wide = torch.promote_types(table.dtype, torch.float32)
        table = table.to(wide) * tensors["weights"].to(wide)[:, None]
    return table.float()
