"""Our side: the trainer and the model as launch.py builds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.arithmetic import training_gflop
from benchmarks.sides import Outcome, Update, device
from benchmarks.workloads import Row

if TYPE_CHECKING:
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.models.reranker.model import RerankerModel
    from rankpo.trainers.basic import BasicTrainer

LEARNING_RATE = 1e-5
COMMON = (
    f"optimizer.lr={LEARNING_RATE}",
    "optimizer.weight_decay=0",
    "scheduler=constant",
    "scheduler.warmup=0",
    "trainer.max_grad_norm=1.0",
    "trainer.eval_at_start=false",
    "+dataloader.shuffle=false",  # the peers read the same rows in the same order
)
IN_BATCH = ("loss=contrastive", "loss.temperature=0.05", "loss.deduplicate_pool=false")
# what MultipleNegativesRankingLoss computes: every candidate of the update is a negative of every other query
SAME_AS_PEERS = (*IN_BATCH, "loss.false_negatives.same_text=false")


def trainer_update(*, overrides: Sequence[str], data: Path) -> Update:
    """Updates of the trainer that these overrides give: planning, collation, forward, backward, clipping, AdamW.

    data: RankPO records, read in their order. In a run the next update is prepared while one runs; here that counts.
    """
    trainer, folder = build_trainer([*overrides, "datasets=[rankpo]", f"datasets.rankpo.path={data}"])

    def update(step: int) -> Outcome:

        prepared = trainer.prepare(step)
        trainer.train_step(prepared)
        loss = trainer.running.result(lambda tensor: tensor)["loss"]
        trainer.running.clear()
        lengths = _lengths(prepared)
        return Outcome(loss, _gflop(trainer.policy, lengths), sum(lengths))

    update.keep = folder  # type: ignore[attr-defined]  # the token file is mapped from it
    return update


def build_trainer(overrides: Sequence[str]) -> tuple[BasicTrainer, TemporaryDirectory[str]]:
    """A trainer ready for its first update, and the folder of its token file."""
    from rankpo.config.compose import compose
    from rankpo.runs import processes
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.work.assemble import assemble

    folder = TemporaryDirectory(prefix="rankpo-benchmark-")
    experiment = compose([*COMMON, *overrides, "exp_name=benchmark", f"cache_dir={folder.name}"])
    accelerator = processes.make_accelerator(experiment.settings.precision)
    trainer = assemble(experiment, accelerator, MetricsLogger(main=False))
    trainer.policy.train()
    return trainer, folder


def encode_update(*, folder: str, texts: Sequence[str], max_length: int) -> Update:
    """`model.encode(texts)`, with all that it does from texts to an array."""
    from rankpo.models.embedding.config import EmbeddingKind

    config = EmbeddingKind(name_or_path=folder, passage_max_length=max_length, query_max_length=max_length)
    model = config.build(config.open_inputs(_silent), _silent)

    def update(step: int) -> Outcome:
        return Outcome(fingerprint(model.encode(texts)))

    return update


def listwise_update(*, overrides: Sequence[str], rows: Sequence[Row], decode: str) -> Update:
    """The ranking of one query's candidates, a query per update. The value: the place of the passage that the first
    window put first, which is the same however the order is read off."""
    from rankpo.config.compose import compose
    from rankpo.models.listwise.reranking import ListwiseReranker

    config: Any = compose(["model=base", "loss=listwise_ranking", *overrides]).model
    model = config.build(config.open_inputs(_silent), _silent).eval().to(device())
    reranker = ListwiseReranker(model, decode=decode)

    def update(step: int) -> Outcome:
        item = rows[step % len(rows)]
        (ranked,) = reranker.rank_many([(item.query, item.candidates)])
        return Outcome(float(ranked.windows[0].permutation.order[0]))

    return update


def fingerprint(embeddings: np.ndarray) -> float:
    """The mean cosine of neighbours, [N, D] of length 1 each: a number that every vector moves."""
    return float((embeddings[1:] * embeddings[:-1]).sum(1).mean())


def _silent(message: str) -> None:
    """Discards a notice."""


def _lengths(prepared: Any) -> list[int]:
    """Tokens of each sequence that an update encodes, each counted once."""
    if hasattr(prepared, "micro_batches"):
        batches = [item.batch for item in prepared.micro_batches if item.counts]
    else:
        batches = [prepared.batch]
    return [length for batch in batches for length in batch.sequences.lengths.tolist()]


def _gflop(model: EmbeddingModel | RerankerModel, lengths: Sequence[int]) -> float:
    settings: Any = model.settings
    if model.kind in ("late_interaction", "sparse"):
        return training_gflop(model.base, lengths, causal=False)
    causal = settings.pooling == "last" if model.kind == "embedding" else settings.head != "encoder"
    return training_gflop(model.base, lengths, causal)
