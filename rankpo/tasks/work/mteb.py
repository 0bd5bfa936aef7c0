"""The work of task=mteb: the model in the interfaces of the package mteb, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rankpo.data.batch import join
from rankpo.errors import ConfigError
from rankpo.models.reranker.model import RerankerModel
from rankpo.models.vectors import GivesVectors
from rankpo.tasks.models import build_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
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
    """An embedding model: queries and passages with the model's prompts, or the task's."""

    def __init__(self, model: GivesVectors, task: Mteb) -> None:
        super().__init__(task)
        self.model = model

    def encode(self, inputs: Batches, *, task_metadata: object, prompt_type: object = None, **_: object) -> np.ndarray:
        """[n, D] float32. prompt_type: query, document, or None for texts that are compared with each other."""
        texts = [text for batch in inputs for text in batch["text"]]
        kind = getattr(prompt_type, "value", None)
        own = self.prompts.get(getattr(task_metadata, "name", ""))
        role = "candidate" if kind == "document" else "query"
        if own is not None and role == "query":
            reads = self.model.inputs
            encoded = reads.tokenize([own + text for text in texts])
            sequences = join([reads.assemble(np.asarray(ids, dtype=np.int64), role) for ids in encoded])
        else:
            sequences = self.model.inputs.sequences_of(texts, role)
        return cast("np.ndarray", self.model.encode_sequences(sequences).numpy())

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        """[n, m] inner products, which are cosines where the model normalises."""
        return torch.as_tensor(embeddings1).float() @ torch.as_tensor(embeddings2).float().T

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        """[n] inner products of row i with row i."""
        return (torch.as_tensor(embeddings1).float() * torch.as_tensor(embeddings2).float()).sum(1)


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
