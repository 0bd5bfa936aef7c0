"""The work of task=encode: a corpus as shards of vectors on disk, with resumption and several processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import TextSource, open_source
from rankpo.retrieval.embeddings import describe_encoding, encode_texts
from rankpo.retrieval.engine_files import write_engine_file
from rankpo.retrieval.shards import remove_embeddings
from rankpo.retrieval.stored import Embeddings, Stored
from rankpo.retrieval.stores import OPENED_BY, QDRANT_LOCAL, Content, require_store, write_store
from rankpo.tasks.vector_models import check_dtype, vector_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.vectors import GivesVectors
    from rankpo.tasks.encode import Encode


def run(task: Encode, experiment: Experiment) -> dict[str, object]:
    """Returns the table's row."""
    if task.to is not None:
        require_store(task.to)
    source = open_source(task.corpus, task.role, experiment.datasets)
    blank = next((name for name, _ in source.texts() if name.split() != [name]), None)
    session = task.open(experiment)
    logger = session.logger
    if blank is not None:
        logger.say(
            f"warning: the id {blank!r} contains white space, which run.trec, a TREC file of task=search, cannot hold"
        )
    model = vector_model(experiment, session)
    _check(task, model, logger.say)
    folder = Path(task.output)
    with session.claimed(folder):
        if logger.main and experiment.overwrite:
            remove_embeddings(folder)
        started = time.monotonic()
        encoding = describe_encoding(model, source, task.role, task.shard_size, task.dtype, task.pool_factor)
        embeddings = encode_texts(folder, encoding, model, source, logger.say)
    if task.engine is not None and logger.main:
        _write_for_engine(task.engine, embeddings, model, folder, logger.say)
    if task.to is not None and logger.main:
        _write_store(task.to, embeddings, model, source, logger.say)
    row = {
        "embeddings": str(folder),
        "texts": len(embeddings),
        "dim": encoding.dim,
        "shards": encoding.num_shards,
        "dtype": encoding.dtype,
        "MB": embeddings.bytes / 1e6,
        "seconds": time.monotonic() - started,
    }
    logger.table([row])
    return row


def _check(task: Encode, model: GivesVectors, say: Callable[[str], None]) -> None:
    """Raises ConfigError for keys that do not fit the vectors of the model."""
    check_dtype(f"task.dtype={task.dtype}", task.dtype, model, say)
    problems = []
    if task.pool_factor > 1 and not model.pools:
        problems.append(f"task.pool_factor={task.pool_factor:g} pools token vectors, and kind={model.kind} has none")
    if task.engine is not None and model.stored_form != "sparse":
        problems.append(f"task.engine={task.engine} needs sparse vectors; add kind=sparse")
    if task.to is not None and model.stored_form != "dense":
        problems.append(f"task.to={task.to} stores one dense vector per text, and kind={model.kind} gives others")
    if problems:
        raise ConfigError(problems)


def _write_for_engine(
    engine: str, embeddings: Stored, model: GivesVectors, folder: Path, say: Callable[[str], None]
) -> None:
    """Writes `folder`/ENGINE.jsonl."""
    assert isinstance(embeddings, Embeddings)
    file = folder / f"{engine}.jsonl"
    tokens = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    names = [*tokens, *(f"entry_{number}" for number in range(len(tokens), model.dim))]
    write_engine_file(embeddings, engine, names, file)
    say(f"{file} written")


def _write_store(
    store: str, embeddings: Stored, model: GivesVectors, source: TextSource, say: Callable[[str], None]
) -> None:
    assert isinstance(embeddings, Embeddings)
    encoding = embeddings.encoding
    about = {"role": encoding.role, "kind": model.kind, "settings": encoding.settings, "weights": encoding.model}
    content = Content(embeddings=embeddings, source=source, metric=model.metric, about=about)
    path = write_store(store, content)
    say(f"{path} written, {model.metric} similarity: {OPENED_BY[store].format(path=str(path), metric=model.metric)}")
    if store == "qdrant" and len(embeddings) > QDRANT_LOCAL:
        say(
            f"qdrant-client advises a server for more than {QDRANT_LOCAL:,} texts; the local mode compares each of them"
        )
