"""The work of task=mteb: the model in the interfaces of the package mteb, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rankpo.errors import ConfigError
from rankpo.models.reranker.model import RerankerModel
from rankpo.models.vectors import GivesVectors
from rankpo.tasks.models import build_model
from rankpo.types import Vectors

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.inputs import TextInputs
    from rankpo.tasks.mteb import Mteb

Batches = Iterable[Mapping[str, list[str]]]  # mteb's loaders of texts


def run(task: Mteb, experiment: Experiment) -> list[dict[str, object]]:
    """The table's rows, one for each task: its main score."""
    mteb = import_module("mteb")
    try:
        tasks = mteb.get_tasks(tasks=list(task.tasks), languages=task.languages)
    except KeyError as error:
        raise ConfigError([f"task.tasks: mteb knows no task {error}"]) from error
    session = task.open(experiment)
    model = build_model(experiment.model, experiment.explicit, session.logger.say)
    session.prepared(model)
    result = mteb.evaluate(
        wrapped(model, task),
        tasks,
        cache=mteb.ResultCache(Path(task.output)),
        overwrite_strategy="always",
        show_progress_bar=False,
    )
    rows: list[dict[str, object]] = [
        {"task": found.task_name, "score": float(found.get_score())} for found in result.task_results
    ]
    session.logger.table(rows)
    session.logger.say(f"{task.output} written: result files of mteb")
    return rows


def wrapped(model: RankingModel, task: Mteb) -> Encoder | Scorer:
    """The model in mteb's interface. Raises ConfigError for a kind that mteb has no interface for."""
    if isinstance(model, GivesVectors):
        return Encoder(model, task)
    if isinstance(model, RerankerModel):
        return Scorer(model, task)
    raise ConfigError([f"task=mteb evaluates embedding models and rerankers; kind={model.kind} is neither"])


class Described:
    """What mteb asks of every model: its description. prompts: of queries, by the names of tasks."""

    def __init__(self, task: Mteb) -> None:
        meta = import_module("mteb.models.model_meta").ModelMeta
        self.mteb_model_meta = meta.create_empty({"name": task.name, "revision": "rankpo"})
        self.prompts = task.prompts


class Encoder(Described):
    """A model with vectors: queries and passages with the model's prompts, or the task's, and the model's own scores.

    mteb handles embeddings as arrays with one entry per text. Kinds with several vectors per text therefore give arrays
    [n, T, D + 1], padded with zeros, whose last column is 1 for vectors and 0 for padding.
    """

    def __init__(self, model: GivesVectors, task: Mteb) -> None:
        super().__init__(task)
        self.model = model

    def encode(self, inputs: Batches, *, task_metadata: object, prompt_type: object = None, **_: object) -> np.ndarray:
        """[n, D] or [n, T, D + 1] float32. prompt_type: query, document, or None for texts compared with each other."""
        texts = [text for batch in inputs for text in batch["text"]]
        kind = getattr(prompt_type, "value", None)
        role = "candidate" if kind == "document" else "query"
        sequences = self._inputs(getattr(task_metadata, "name", "")).sequences_of(texts, role)
        rows = self.model.encode_sequences(sequences)
        if not self.model.ragged:
            return cast("np.ndarray", rows.numpy())
        return padded(Vectors(rows, self.model.counts(sequences)))

    def _inputs(self, name: str) -> TextInputs:
        """The inputs of the model, with the query prompt of a task that has its own."""
        own = self.model.inputs
        if name not in self.prompts:
            return own
        return type(own)(own.tokenizer, replace(own.settings, query_prompt=self.prompts[name]))  # type: ignore[call-arg]

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        """[n, m] scores of the model: inner products, which are cosines where the model normalises, or MaxSim."""
        if self.model.ragged:
            return self.model.stored_similarity(unpadded(embeddings1), unpadded(embeddings2))
        return torch.as_tensor(embeddings1).float() @ torch.as_tensor(embeddings2).float().T

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        """[n] scores of row i with row i."""
        if self.model.ragged:
            return self.model.stored_paired(unpadded(embeddings1), unpadded(embeddings2))
        return (torch.as_tensor(embeddings1).float() * torch.as_tensor(embeddings2).float()).sum(1)


def padded(vectors: Vectors) -> np.ndarray:
    """[n, T, D + 1]: the vectors of each text, a column of ones, and rows of zeros up to the longest text."""
    marked = torch.cat([vectors.rows, torch.ones(len(vectors.rows), 1)], 1)
    parts = marked.split(vectors.counts.tolist())
    return cast("np.ndarray", torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).numpy())


def unpadded(embeddings: np.ndarray) -> Vectors:
    """The vectors of `padded`; of one text for an array [T, D + 1]."""
    values = torch.as_tensor(embeddings).float()
    values = values[None] if values.ndim == 2 else values
    real = values[..., -1] > 0
    return Vectors(values[real][:, :-1], real.sum(1).cpu())


class Scorer(Described):
    """A reranker: scores of pairs of a query and a document."""

    def __init__(self, model: RerankerModel, task: Mteb) -> None:
        super().__init__(task)
        self.model = model

    def predict(self, inputs1: Batches, inputs2: Batches, *, task_metadata: object, **_: object) -> np.ndarray:
        """[n] scores."""
        own = self.prompts.get(getattr(task_metadata, "name", ""), "")
        queries = [own + text for batch in inputs1 for text in batch["text"]]
        documents = [text for batch in inputs2 for text in batch["text"]]
        scores = self.model.compute_score(list(zip(queries, documents, strict=True)))
        return np.asarray(scores, dtype=np.float32)
