"""task=serve: the report as a live page on this machine, and a search box over one or two indexes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import check_source, open_source
from rankpo.tasks.base import Task
from rankpo.tasks.report import check_runs

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.report.compare import Index
    from rankpo.report.page import Content
    from rankpo.runs.logger import MetricsLogger


@dataclass(frozen=True, kw_only=True)
class Serve(Task):
    """runs, metrics, baseline, labels, title: as of task=report. seconds: between two looks for something new.

    indexes: folders of task=encode, with as many models, the folders that encoded them; corpus: where their texts
    come from, as of task=encode. minutes: after which the server ends by itself; None: on Ctrl-C.
    """

    runs: Sequence[str]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    labels: Mapping[str, str] | None = None
    title: str = "rankpo"
    indexes: Sequence[str] = ()
    models: Sequence[str] = ()
    corpus: str = "own"
    top_k: int = 10
    host: str = "127.0.0.1"
    port: int = 8765
    seconds: float = 5.0
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_runs(self.runs)
        if len(self.indexes) != len(self.models):
            raise ValueError(
                f"models must name the folder that encoded each of indexes: got {len(self.models)} for {len(self.indexes)}"
            )
        if self.top_k < 1 or self.seconds <= 0 or not 0 <= self.port <= 65535:
            raise ValueError("top_k must be >= 1, seconds > 0 and port between 0 and 65535")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be > 0 or null, got {self.minutes}")
        if self.indexes:
            check_source(self.corpus, "corpus")

    def __call__(self, experiment: Experiment) -> None:
        """Serves until it is ended."""
        from rankpo.report.compare import Searcher
        from rankpo.report.serve import Live, is_loopback, make_server
        from rankpo.runs.logger import MetricsLogger

        logger = MetricsLogger()
        searcher = Searcher(self._open_indexes(experiment, logger), self.top_k) if self.indexes else None
        live = Live(
            lambda: self._content(experiment), [Path(run) for run in self.runs], title=self.title, seconds=self.seconds
        )
        try:
            server = make_server(live, searcher, self.host, self.port)
        except OSError as error:
            raise ConfigError([f"task.host={self.host} task.port={self.port}: {error}; choose another"]) from error
        if not is_loopback(self.host):
            logger.say(f"task.host={self.host}: everybody who reaches this machine can read these runs")
        logger.say(f"http://{self.host}:{server.server_address[1]}/ (Ctrl-C ends it)")
        if self.minutes is not None:
            timer = threading.Timer(60 * self.minutes, server.shutdown)
            timer.daemon = True
            timer.start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.say("ended")
        finally:
            server.server_close()

    def _content(self, experiment: Experiment) -> Content:
        """The runs as they are now."""
        from rankpo.report.page import Content
        from rankpo.report.runs import open_runs, sweeps_among

        return Content(
            title=self.title,
            runs=open_runs(self.runs),
            metrics=self.metrics,
            baseline=self.baseline,
            labels=self.labels or {},
            datasets=experiment.eval_datasets,
            sweeps=sweeps_among(self.runs),
        )

    def _open_indexes(self, experiment: Experiment, logger: MetricsLogger) -> list[Index]:
        """Raises ConfigError where a model is no embedding model, or another than the one that encoded its index."""
        from rankpo.models.embedding.model import EmbeddingModel
        from rankpo.models.load import load_saved
        from rankpo.report.compare import Index
        from rankpo.report.runs import short_names
        from rankpo.retrieval.embeddings import Embeddings
        from rankpo.tasks.search import check_model

        texts = dict(open_source(self.corpus, "passage", experiment.datasets).texts())
        opened = []
        for name, folder, path in zip(
            short_names([Path(m) for m in self.models]), self.indexes, self.models, strict=True
        ):
            logger.say(f"loading {path}")
            model = load_saved(path)
            if not isinstance(model, EmbeddingModel):
                raise ConfigError([f"task.models: {path} gives no embeddings"])
            corpus = Embeddings(Path(folder))
            check_model(corpus, model)
            opened.append(Index(name=name, model=model, corpus=corpus, ids=corpus.ids(), texts=texts))
        return opened
