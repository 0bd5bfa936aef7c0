"""The work of task=serve: the report as a live page on this machine, and a search box over one or two indexes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.load import load_saved
from rankpo.report.compare import Index, Searcher
from rankpo.report.page import Content
from rankpo.report.runs import open_runs, short_names, sweeps_among
from rankpo.report.serve import Live, is_loopback, make_server
from rankpo.retrieval.corpus import open_source
from rankpo.retrieval.embeddings import Embeddings
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.search import check_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.serve import Serve


def run(task: Serve, experiment: Experiment) -> None:
    """Serves until task.minutes have passed, or until Ctrl-C."""
    logger = MetricsLogger()
    searcher = Searcher(_open_indexes(task, experiment, logger), task.top_k) if task.indexes else None
    live = Live(
        lambda: _content(task, experiment), [Path(run) for run in task.runs], title=task.title, seconds=task.seconds
    )
    try:
        server = make_server(live, searcher, task.host, task.port)
    except OSError as error:
        raise ConfigError([f"task.host={task.host} task.port={task.port}: {error}; choose another"]) from error
    if not is_loopback(task.host):
        logger.say(f"task.host={task.host}: everyone with network access to this machine can read these runs")
    logger.say(f"http://{task.host}:{server.server_address[1]}/ (stop with Ctrl-C)")
    if task.minutes is not None:
        timer = threading.Timer(60 * task.minutes, server.shutdown)
        timer.daemon = True
        timer.start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        logger.say("ended")
    finally:
        server.server_close()


def _content(task: Serve, experiment: Experiment) -> Content:
    """The current content of the report."""
    return Content(
        title=task.title,
        runs=open_runs(task.runs),
        metrics=task.metrics,
        baseline=task.baseline,
        labels=task.labels or {},
        datasets=experiment.eval_datasets,
        sweeps=sweeps_among(task.runs),
    )


def _open_indexes(task: Serve, experiment: Experiment, logger: MetricsLogger) -> list[Index]:
    """Opens the indexes. Raises ConfigError if a model gives no embeddings or did not encode its index."""
    texts = dict(open_source(task.corpus, "passage", experiment.datasets).texts())
    opened = []
    for name, folder, path in zip(short_names([Path(m) for m in task.models]), task.indexes, task.models, strict=True):
        logger.say(f"loading {path}")
        model = load_saved(path)
        if not isinstance(model, EmbeddingModel):
            raise ConfigError([f"task.models: {path} gives no embeddings; set the folder that encoded the index"])
        corpus = Embeddings(Path(folder))
        check_model(corpus, model)
        opened.append(Index(name=name, model=model, corpus=corpus, ids=corpus.ids(), texts=texts))
    return opened
