"""A tiny random causal language model in a folder, whose vocabulary holds two whole answers as tokens of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from tests.toy_tokenizers import CHATML, byte_bpe

ANSWERS = ("Preferred: A\nConfidence score: 80", "Preferred: B\nConfidence score: 70")


def write(folder: Path, seed: int = 5) -> list[int]:
    """Writes model and tokenizer; returns the token of each of ANSWERS."""
    tokenizer = byte_bpe(template=CHATML)
    tokenizer.add_tokens([AddedToken(answer, normalized=False) for answer in ANSWERS])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=1.0,  # large: what stands far in front is seen in the last token's logits; of 15 seeds, two have a model that says both
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer.convert_tokens_to_ids(list(ANSWERS))
