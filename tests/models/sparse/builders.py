"""Tiny sparse models over bytes, of the architectures that have a masked-language head."""

import torch
from transformers import AutoModelForMaskedLM

from rankpo.models.random_weights import byte_tokenizer, random_backbone
from rankpo.models.sparse.inputs import SparseInputs
from rankpo.models.sparse.model import SparseModel
from rankpo.models.sparse.settings import SparseSettings
from tests.models.families import ENCODER, FAMILIES

MASKED = {
    **{name: FAMILIES[name] for name in ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert")},
    "mpnet": ENCODER,
    "albert": {**ENCODER, "embedding_size": 16},
    "camembert": ENCODER,
    "eurobert": {**ENCODER, "num_key_value_heads": 3, "head_dim": 8},
}
TEXTS = ["soil", "a field of wheat in the rain", "", "soil", "ploughing", "x"]


def masked_backbone(family="bert", attention="sdpa", **changes):
    """The same weights at every call; biases differ from 0, so that a missing one shows."""
    torch.manual_seed(1)
    keys = {"model_type": family, **MASKED[family], **changes}
    model = random_backbone(keys, attention, AutoModelForMaskedLM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def sparse_model(family="bert", *, attention="sdpa", layout="auto", chunk_tokens=None, **settings):
    lengths = {"query_max_length": 12, "passage_max_length": 20}
    inputs = SparseInputs(byte_tokenizer(), SparseSettings(**{**lengths, **settings}))
    return SparseModel(masked_backbone(family, attention), inputs, layout=layout, chunk_tokens=chunk_tokens).eval()
