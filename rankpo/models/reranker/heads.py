"""Score heads of rerankers: the architectures' own heads on packed rows, verified against the original."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu
from transformers import PreTrainedModel

from rankpo.models.engine.pooling import pool


class ScoreHead(ABC):
    """`scores(model, hidden, lengths)` gives [n] float32; hidden [tokens, D], sequences concatenated, lengths [n].

    The model's modules are looked up at every call, since adapters replace them by wrappers.
    modules: names of the head's modules in the model, which are fully trained next to adapters.
    """

    modules: tuple[str, ...] = ()

    def pooling(self, model: PreTrainedModel) -> str:
        """The states that `scores` reads, as a way of `pool`."""
        return "cls"

    def fits(self, model: PreTrainedModel) -> bool:
        """Whether the model has the head's modules."""
        return all(hasattr(model, name) or hasattr(model.base_model, name) for name in self.modules)

    @abstractmethod
    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor: ...

    def plain(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Scalar score of one sequence [T] by the architecture's own forward pass."""
        return model(input_ids=ids[None]).logits[0, 0]


class PooledHead(ScoreHead):
    """Encoders with a configurable pooling, `head` and `classifier`: ModernBERT."""

    modules = ("head", "classifier")

    def pooling(self, model: PreTrainedModel) -> str:
        return str(model.config.classifier_pooling)

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        pooled = pool(hidden, lengths, self.pooling(model)).to(model.dtype)  # [n, D]
        return model.get_submodule("classifier")(model.get_submodule("drop")(model.get_submodule("head")(pooled)))[:, 0]


class PoolerHead(ScoreHead):
    """Encoders with a pooler over the first token, dropout and `classifier`: BERT, DeBERTa."""

    def __init__(self, in_backbone: bool) -> None:
        self.in_backbone = in_backbone
        self.modules = ("pooler", "classifier")

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        first = pool(hidden, lengths, "cls").to(model.dtype)[:, None]  # [n, 1, D]
        pooler = (cast("nn.Module", model.base_model) if self.in_backbone else model).get_submodule("pooler")
        return model.get_submodule("classifier")(model.get_submodule("dropout")(pooler(first)))[:, 0]


class TwoLayerHead(ScoreHead):
    """Encoders with `pre_classifier`, ReLU, dropout and `classifier` on the first token: DistilBERT."""

    modules = ("pre_classifier", "classifier")

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        first = relu(model.get_submodule("pre_classifier")(pool(hidden, lengths, "cls").to(model.dtype)))
        return model.get_submodule("classifier")(model.get_submodule("dropout")(first))[:, 0]


class FirstTokenHead(ScoreHead):
    """Encoders whose `classifier` selects the first token itself: RoBERTa, XLM-R, ELECTRA, MPNet."""

    modules = ("classifier",)

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        first = pool(hidden, lengths, "cls").to(model.dtype)[:, None]  # [n, 1, D]
        return model.get_submodule("classifier")(first)[:, 0]


class LastTokenHead(ScoreHead):
    """Decoders with a linear `score`: w · h at the last token, found by length and not by pad id."""

    modules = ("score",)

    def pooling(self, model: PreTrainedModel) -> str:
        return "last"

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        return model.get_submodule("score")(pool(hidden, lengths, "last").to(model.dtype))[:, 0]


class AnswerHead(ScoreHead):
    """Causal language models: the logit of the yes word after the last token, minus that of the no word if used.

    It multiplies two rows of the output matrix with one hidden state, without generation or other logits.
    ids: of the yes word, and of the no word if it is used.
    """

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids

    def pooling(self, model: PreTrainedModel) -> str:
        return "last"

    def scores(self, model: PreTrainedModel, hidden: Tensor, lengths: Tensor) -> Tensor:
        output = cast("nn.Linear", model.get_output_embeddings())
        rows = torch.tensor(self.ids).to(hidden.device, non_blocking=True)
        bias = None if getattr(output, "bias", None) is None else output.bias[rows].float()
        logits = linear(pool(hidden, lengths, "last"), output.weight[rows].float(), bias)  # [n, 1 or 2]
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits[:, 0] if len(self.ids) == 1 else logits[:, 0] - logits[:, 1]

    def plain(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        logits = model(input_ids=ids[None]).logits[0, -1].float()  # [V]
        return logits[self.ids[0]] - (logits[self.ids[1]] if len(self.ids) == 2 else 0)


def find_head(model: PreTrainedModel, kind: str, answers: tuple[int, ...] = ()) -> ScoreHead:
    """Returns the head of this kind that reproduces the scores of the architecture.

    Raises ValueError if there is none, or if the head does not have exactly one output.
    """
    if kind != "causal_lm" and model.config.num_labels != 1:
        raise ValueError(
            f"{type(model).__name__} has {model.config.num_labels} labels, but a reranker needs one; choose another model, or "
            "train a new score on its encoder: AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), and its tokenizer, "
            "write what model.load_from=FOLDER reads"
        )
    head = AnswerHead(answers) if kind == "causal_lm" else LastTokenHead() if kind == "decoder" else _encoder(model)
    if not (head.fits(model) and _proved(model, head)):
        raise ValueError(
            f"{type(model).__name__} computes its score differently from model.head={kind}; "
            "choose another model.head or another model"
        )
    return head


def _encoder(model: PreTrainedModel) -> ScoreHead:
    if hasattr(model, "head") and hasattr(model.config, "classifier_pooling"):
        return PooledHead()
    if hasattr(model, "pre_classifier"):
        return TwoLayerHead()
    for in_backbone, owner in ((True, model.base_model), (False, model)):
        if isinstance(getattr(owner, "pooler", None), nn.Module):
            return PoolerHead(in_backbone)
    return FirstTokenHead()


@torch.no_grad()
def _proved(model: PreTrainedModel, head: ScoreHead) -> bool:
    """Whether head and architecture agree on two short sequences, both with transformers' own attention."""
    training, packed = model.training, model.config._attn_implementation
    model.eval()
    if packed not in ("sdpa", "eager"):
        model.config._attn_implementation = "sdpa"
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    try:
        for start, length in ((11, 3), (21, 5)):
            ids = (torch.arange(start, start + length, device=device) * 7) % vocabulary
            hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0]
            ours = head.scores(model, hidden, torch.tensor([length]))[0].float()
            plain = head.plain(model, ids).float()
            tolerance = 1e-5 if model.dtype == torch.float32 else 5e-2
            if not torch.allclose(ours, plain, rtol=1e-4, atol=tolerance):
                return False
    finally:
        model.config._attn_implementation = packed
        model.train(training)
    return True
