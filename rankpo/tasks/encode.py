"""Encode: the keys of task=encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.retrieval.corpus import check_source
from rankpo.tasks.base import Task

ROLES = ("passage", "query")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Encode(Task):
    """Writes `output`: shard-NNNNN.npy, their ids, and meta.json with the fingerprints of model, texts and inputs.

    corpus: "own" (that of the datasets), "pool" (all passages of their examples), or a file, folder or glob.
    Starting again continues an interrupted encoding; another model or corpus is refused without overwrite=true.
    The call returns the table's row.
    """

    corpus: str = "own"
    role: str = "passage"
    shard_size: int = 16384
    dtype: str = "float32"
    output: str = "embeddings"

    work: ClassVar[str] = "rankpo.tasks.work.encode"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __post_init__(self) -> None:
        for name, allowed in (("role", ROLES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {self.shard_size}")
        check_source(self.corpus, "corpus")
<<<<<<< HEAD

    def __call__(self, experiment: Experiment) -> dict[str, object]:
        """The table's row."""
        from rankpo.retrieval import embeddings as stored
        from rankpo.retrieval import shards

        source = open_source(self.corpus, self.role, experiment.datasets)
        blank = next((name for name, _ in source.texts() if name.split() != [name]), None)
        session = self.open(experiment)
        logger = session.logger
        if blank is not None:
            logger.say(
                f"warning: the id {blank!r} has white space: task=search writes run.trec, a TREC file, which cannot hold it"
            )
        model = vector_model(experiment, session)
        folder = Path(self.output)
        with session.claimed(folder):
            if logger.main and experiment.overwrite:
                shards.remove_embeddings(folder)
            started = time.monotonic()
            encoding = stored.describe_encoding(model, source, self.role, self.shard_size, self.dtype)
            embeddings = stored.encode_texts(folder, encoding, model, source, logger.say)
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


def vector_model(experiment: Experiment, session: Session, who: str = "this task") -> EmbeddingModel:
    """The model of the config, ready to encode. Raises ConfigError before weights are loaded if it gives no vectors.

    who: needs it, in the message.
    """
    from rankpo.tasks.models import build_model

    require(experiment.model, frozenset({"vectors"}), who)
    seed_everything(experiment.seed)
    return session.prepared(build_model(experiment.model, experiment.explicit, session.logger.say))
=======
>>>>>>> main
