"""Masked-language heads of encoders: the layers between the hidden states and the output head, per architecture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.models.attention import plain_attention
from rankpo.models.engine.body import body_of
from rankpo.models.engine.token_logps import Head

GELU = "gelu"


@dataclass(frozen=True)
class Transform:
    """The layers of a head before its output layer. steps: names of modules in the model, or `GELU`, in order.

    The modules are looked up at every call, since adapters replace them by wrappers.
    """

    steps: tuple[str, ...]

    def fits(self, model: nn.Module) -> bool:
        names = {name for name, _ in model.named_modules()}
        return all(step == GELU or step in names for step in self.steps)

    def apply(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Returns the inputs [tokens, D'] of the output layer. hidden: [tokens, D]."""
        for step in self.steps:
            hidden = gelu(hidden) if step == GELU else model.get_submodule(step)(hidden)
        return hidden


TRANSFORMS = (
    Transform(("cls.predictions.transform",)),  # BERT, DeBERTa, NomicBERT
    Transform(("lm_head.dense", GELU, "lm_head.layer_norm")),  # RoBERTa, XLM-R, CamemBERT, MPNet
    Transform(("vocab_transform", "activation", "vocab_layer_norm")),  # DistilBERT
    Transform(("predictions.dense", "predictions.activation", "predictions.LayerNorm")),  # ALBERT
    Transform(("generator_predictions",)),  # ELECTRA
    Transform(("head",)),  # ModernBERT
    Transform(()),  # a linear head alone: EuroBERT
)


def output_head(model: PreTrainedModel) -> Head:
    """Returns the output layer. Raises ConfigError if adapters wrap it."""
    output: object = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        name = type(output).__name__
        raise ConfigError(
            [f"the output head is a {name}, not a linear layer; leave it out of model.peft.target_modules"]
        )
    return Head(output.weight, output.bias)


def find_transform(model: PreTrainedModel, packed: bool) -> Transform:
    """Finds the layers that reproduce the logits of the architecture.

    packed: whether the enclosing `RankingModel` uses packed attention. Raises ValueError for an unknown head.
    """
    for transform in TRANSFORMS:
        if transform.fits(model) and _proved(model, transform, packed):
            return transform
    raise ValueError(
        f"{type(model).__name__} has a masked-language head that kind=sparse does not support; choose an encoder with a "
        "masked-language head, such as BERT, DistilBERT, RoBERTa, XLM-R, ModernBERT or ELECTRA"
    )


@torch.no_grad()
def _proved(model: PreTrainedModel, transform: Transform, packed: bool) -> bool:
    """Whether the logits from `transform` equal those of the model on a few tokens."""
    training = model.training
    ids = (torch.arange(3, 10, device=model.device) * 7) % model.config.get_text_config().vocab_size
    model.eval()
    try:
        with plain_attention(model, packed) as plain:
            theirs = plain(input_ids=ids[None]).logits[0].float()
            hidden = body_of(model)(input_ids=ids[None]).last_hidden_state[0]
        head = output_head(model)
        inputs = transform.apply(model, hidden).float()
        if inputs.shape[1] != head.weight.shape[1]:
            return False
        ours = inputs @ head.weight.float().t() + (0 if head.bias is None else head.bias.float())
    finally:
        model.train(training)
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 if hidden.dtype == torch.float32 else 5e-2)
