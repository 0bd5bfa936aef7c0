"""task=encode: a corpus as vectors on disk, in shards, resumable, by as many processes as were started."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import check_source, open_source

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.embedding.model import EmbeddingModel

ROLES = ("passage", "query")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Writes `output`: shard-NNNNN.npy, their ids, and meta.json with the fingerprints of model, texts and inputs.

    corpus: "own" (that of the datasets), "pool" (all passages of their examples), or a file, folder or glob.
    Starting again continues an interrupted encoding; another model or corpus is refused without overwrite=true.
    """

    corpus: str = "own"
    role: str = "passage"
    shard_size: int = 16384
    dtype: str = "float32"
    output: str = "embeddings"

    def __post_init__(self) -> None:
        for name, allowed in (("role", ROLES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {self.shard_size}")
        check_source(self.corpus, "corpus")

    def __call__(self, experiment: Experiment) -> dict[str, Any]:
        """The table's row."""
        from rankpo.retrieval.embeddings import describe_encoding, encode_texts
        from rankpo.runs import processes
        from rankpo.runs.folder import claim
        from rankpo.runs.logger import MetricsLogger

        source = open_source(self.corpus, self.role, experiment.datasets)
        blank = next((name for name, _ in source.texts() if name.split() != [name]), None)
        accelerator = processes.make_accelerator()
        logger = MetricsLogger(main=processes.rank() == 0)
        if blank is not None:
            logger.say(
                f"warning: the id {blank!r} has white space: task=search writes run.trec, a TREC file, which cannot hold it"
            )
        model = embedding_model(experiment, accelerator.device, logger.say)
        folder = Path(self.output)
        with claim(folder) if logger.main else _unclaimed():
            if logger.main and experiment.overwrite:
                shutil.rmtree(folder)
            started = time.monotonic()
            encoding = describe_encoding(model, source, self.role, self.shard_size, self.dtype)
            embeddings = encode_texts(folder, encoding, model, source, logger.say)
        row = {
            "embeddings": str(folder),
            "texts": len(embeddings),
            "dim": encoding.dim,
            "shards": encoding.num_shards,
            "dtype": encoding.dtype,
            "seconds": time.monotonic() - started,
        }
        logger.table([row])
        return row


def _unclaimed() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def embedding_model(experiment: Experiment, device: Any, say: Any) -> EmbeddingModel:
    """The model of the config. Raises ConfigError before weights are loaded if it gives no embeddings."""
    from rankpo.tasks.evaluate import build_model
    from rankpo.tasks.train import seed_everything

    kind = getattr(experiment.model, "kind", None)
    if kind != "embedding":
        raise ConfigError([f"this task needs embeddings, and model is of kind {kind!r}; try model=minilm or bge_m3"])
    seed_everything(experiment.seed)  # random weights and new heads are the same on every rank and in every task
    return build_model(experiment.model, experiment.explicit, device, say)
