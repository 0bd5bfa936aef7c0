"""The other sides: the padded loop that one would write first, and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.ours import LEARNING_RATE, fingerprint
from benchmarks.sides import Outcome, Update, device
from benchmarks.workloads import Row

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn


def padded_preference(
    *,
    folder: str,
    rows: Sequence[Row],
    batch_size: int,
    query_length: int,
    passage_length: int,
    beta: float,
    temperature: float,
) -> Update:
    """RankPO without reference as a plain loop: queries in one padded batch, all passages in another.

    The reference arithmetic of the preference benchmark: -log σ(β(s_w - s_l)/τ), https://arxiv.org/abs/2503.10723.
    """
    import torch
    from torch.nn.functional import logsigmoid, normalize
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device())

    def embed(texts: Sequence[str], length: int) -> Tensor:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        last = inputs["attention_mask"].sum(1) - 1
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return normalize(hidden[torch.arange(len(texts)), last], dim=1)

    def loss_of(chunk: Sequence[Row]) -> Tensor:
        queries = embed([row.query for row in chunk], query_length)
        passages = embed([text for row in chunk for text in row.candidates], passage_length)
        scores = torch.einsum("bd,bgd->bg", queries, passages.unflatten(0, (len(chunk), 2)))
        return -logsigmoid(beta * (scores[:, 0] - scores[:, 1]) / temperature).mean()

    return _training(model, rows, batch_size, loss_of)


def sentence_transformers_update(
    *,
    folder: str,
    rows: Sequence[Row],
    batch_size: int,
    pooling: str,
    query_length: int,
    passage_length: int,
    mini_batch: int | None = None,
) -> Update:
    """A step of sentence-transformers with MultipleNegativesRankingLoss, or its cached form if `mini_batch` is given.

    What its trainer does for an update: a padded batch per column from the collator, the loss, its backward, clipping,
    AdamW. Called directly, which leaves its loop's own work out.
    """
    from sentence_transformers.sentence_transformer import losses

    model = sentence_transformer(folder, pooling, passage_length)
    if mini_batch is None:
        loss: nn.Module = losses.MultipleNegativesRankingLoss(model)
    else:
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch)

    def loss_of(chunk: Sequence[Row]) -> Tensor:
        columns = [[row.query for row in chunk], *map(list, zip(*(row.candidates for row in chunk), strict=True))]
        features = []
        for number, texts in enumerate(columns):
            model.max_seq_length = query_length if number == 0 else passage_length
            features.append(model.preprocess(texts))
        return loss(features, None)

    return _training(model, rows, batch_size, loss_of)


def sparse_encoder_update(
    *,
    folder: str,
    rows: Sequence[Row],
    batch_size: int,
    max_length: int,
    scale: float,
    weights: tuple[float, float],
) -> Update:
    """A step of sentence-transformers' SparseEncoder with SpladeLoss over SparseMultipleNegativesRankingLoss.

    weights: of the FLOPS terms of queries and documents.
    """
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import losses

    from rankpo.tasks.work.assemble import disable_dropout

    model = SparseEncoder(folder, device="cpu")
    model.max_seq_length = max_length
    disable_dropout(model)
    loss = losses.SpladeLoss(
        model,
        losses.SparseMultipleNegativesRankingLoss(model, scale=scale),
        query_regularizer_weight=weights[0],
        document_regularizer_weight=weights[1],
    )

    def loss_of(chunk: Sequence[Row]) -> Tensor:
        columns = [[row.query for row in chunk], *map(list, zip(*(row.candidates for row in chunk), strict=True))]
        parts: list[Tensor] = list(loss([model.preprocess(texts) for texts in columns]).values())
        return sum(parts[1:], parts[0])

    return _training(model, rows, batch_size, loss_of)


def multi_vector_update(*, folder: str, rows: Sequence[Row], batch_size: int, mini_batch: int | None = None) -> Update:
    """A step of sentence-transformers' MultiVectorEncoder with MultiVectorMultipleNegativesRankingLoss, or its cached
    form if `mini_batch` is given; as `sentence_transformers_update`."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder import losses

    from rankpo.tasks.work.assemble import disable_dropout

    model = MultiVectorEncoder(folder, device="cpu")
    disable_dropout(model)
    if mini_batch is None:
        loss: nn.Module = losses.MultiVectorMultipleNegativesRankingLoss(model)
    else:
        loss = losses.CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch)

    def loss_of(chunk: Sequence[Row]) -> Tensor:
        columns = [[row.query for row in chunk], *map(list, zip(*(row.candidates for row in chunk), strict=True))]
        tasks = ["query", *["document"] * (len(columns) - 1)]
        features = [
            {**model.preprocess(texts, task=task), "task": task} for texts, task in zip(columns, tasks, strict=True)
        ]
        return loss(features, None)

    return _training(model, rows, batch_size, loss_of)


def cross_encoder_update(*, folder: str, rows: Sequence[Row], batch_size: int, max_length: int) -> Update:
    """A step of sentence-transformers' CrossEncoder with BinaryCrossEntropyLoss: the first candidate of a row is
    relevant. What its trainer does for an update, called directly: one padded batch of all pairs."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from rankpo.tasks.work.assemble import disable_dropout

    model = CrossEncoder(folder, device=device(), max_length=max_length)
    disable_dropout(model)
    loss = BinaryCrossEntropyLoss(model)

    def loss_of(chunk: Sequence[Row]) -> Tensor:
        queries = [row.query for row in chunk for _ in row.candidates]
        documents = [text for row in chunk for text in row.candidates]
        labels = torch.tensor([float(n == 0) for row in chunk for n in range(len(row.candidates))])
        return loss([queries, documents], labels)

    return _training(model, rows, batch_size, loss_of)


def sentence_transformers_encode(*, folder: str, texts: Sequence[str], max_length: int) -> Update:
    """`SentenceTransformer.encode(texts)` as it comes: batches of 32, sorted by length."""
    model = sentence_transformer(folder, "mean", max_length)

    def update(step: int) -> Outcome:
        return Outcome(fingerprint(model.encode(list(texts), show_progress_bar=False)))

    return update


def sentence_transformer(folder: str, pooling: str, max_length: int) -> SentenceTransformer:
    """The same weights, pooling and normalisation as ours, without dropout."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers.utils import logging as huggingface_logging

    from rankpo.tasks.work.assemble import disable_dropout

    huggingface_logging.disable_progress_bar()
    transformer = Transformer(folder, max_seq_length=max_length)
    mode = {"mean": "mean", "last": "lasttoken", "cls": "cls"}[pooling]
    pooled = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    model = SentenceTransformer(modules=[transformer, pooled, Normalize()], device=device())
    disable_dropout(model)
    return model


def _training(
    model: nn.Module, rows: Sequence[Row], batch_size: int, loss_of: Callable[[Sequence[Row]], torch.Tensor]
) -> Update:
    """Updates over `rows` in their order, again from the first after the last."""
    import torch

    parameters: list[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    per_epoch = -(-len(rows) // batch_size)
    model.train()

    def update(step: int) -> Outcome:
        start = step % per_epoch * batch_size
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(rows[start : start + batch_size])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return Outcome(float(loss.detach()))

    return update
