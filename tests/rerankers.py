"""The overrides of one tiny reranker for each head, by the name of the head."""

from __future__ import annotations

ENCODER = ("kind=reranker", "model=tiny_bert")
DECODER = ("kind=reranker", "model=tiny_llama")
YES_NO = (
    *DECODER,
    "model.head=causal_lm",
    "model.suffix='\nrelevant:'",
    "model.yes_word=y",  # a byte is a token
    "model.no_word=n",
)
RERANKERS = {"encoder": ENCODER, "decoder": DECODER, "yes_no": YES_NO}
