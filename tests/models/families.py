"""Tiny random backbones of the families that users bring, over bytes, with odd sizes so that no two axes agree."""

import torch
from transformers import PreTrainedModel

from rankpo.data.batch import join
from rankpo.models.random_weights import random_backbone
from rankpo.types import Sequences

ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 80,
}
DECODER = {**ENCODER, "num_key_value_heads": 1, "head_dim": 8}
WINDOW = 5  # tokens: shorter than the test's longest sequences
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
FAMILIES = {
    "bert": {**ENCODER},
    "roberta": {**ENCODER},
    "xlm-roberta": {**ENCODER},
    "electra": {**ENCODER, "embedding_size": 16},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 80},
    "modernbert": {**ENCODER, "local_attention": 2 * WINDOW, "layer_types": LOCAL_AND_GLOBAL, "bos_token_id": 1},
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "mistral": {**DECODER, "sliding_window": WINDOW},
    "gemma3_text": {**DECODER, "sliding_window": WINDOW, "layer_types": LOCAL_AND_GLOBAL},
    "gpt_neox": {**ENCODER},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40, "n_positions": 80},
}
LENGTHS = (9, 23, 2, 9, 1, 17)  # unequal, an equal pair apart from each other, and a single token


def backbone(family: str, attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    """The same weights at every call."""
    torch.manual_seed(1)
    model = random_backbone({"model_type": family, **FAMILIES[family], **changes}, attention)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0 and norms at 1: a swapped one would not show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def sequences(lengths: tuple[int, ...] = LENGTHS) -> Sequences:
    """Random ids from 4 (special ones come before) to 250."""
    generator = torch.Generator().manual_seed(7)
    return join([torch.randint(4, 250, (length,), generator=generator).numpy() for length in lengths])
