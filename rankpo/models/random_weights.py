"""Models with random weights, and the tokenizer that they use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from rankpo.errors import LoadingError
from rankpo.models.advice import advised
from rankpo.models.attention import with_attention
from rankpo.models.families import Family


def random_backbone(
    config: Mapping[str, object], attn_implementation: str = "sdpa", family: Family | None = None
) -> PreTrainedModel:
    """Returns a model with random weights. `config` holds `model_type` and any key of that type's configuration.

    Raises LoadingError for a type unknown to transformers.
    """
    settings = dict(config)
    model_type = str(settings.pop("model_type", None))
    if model_type not in CONFIG_MAPPING:
        raise LoadingError(
            f"model.random.model_type={model_type} is not a model type of transformers; use one such as bert or llama"
        )
    vocabulary = byte_tokenizer()
    settings.setdefault("vocab_size", len(vocabulary))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        settings.setdefault(name, getattr(vocabulary, name))
    built = AutoConfig.for_model(model_type, **settings)
    bodies = MODEL_MAPPING_NAMES.get(model_type)
    if isinstance(bodies, tuple):  # Such as Funnel with and without its decoder; transformers chooses by this name.
        built.architectures = built.architectures or [bodies[0]]
    with advised(f"a random {model_type}", "", attn_implementation):
        options = {"attn_implementation": attn_implementation, "dtype": torch.float32}
        return with_attention(partial((family or AutoModel).from_config, built), options)


def byte_tokenizer() -> FastTokenizer:
    """Returns a tokenizer without training or files: [CLS], one token per byte, [SEP]."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
    return FastTokenizer(tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()})
