"""The work of task=mine: search, exclusion, scores, draws, and the files of hard negatives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.errors import ConfigError
from rankpo.mining import output
from rankpo.mining.candidates import Search, gather_numbers
from rankpo.mining.data import MiningData, read
from rankpo.mining.pipeline import Candidates, Mined, exclude, mine_all
from rankpo.mining.scores import DenseScores, PairScorer, pair_scores, score_pairs
from rankpo.mining.settings import MiningSettings
from rankpo.mining.statistics import statistics
from rankpo.mining.summary import Statistics, emptiness, histogram_line, table_row
from rankpo.models.load import load_saved
from rankpo.retrieval.corpus import FileTexts, dataset_files, open_source
from rankpo.runs import processes
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replace_text
from rankpo.storage.several import left_unfinished, written_together
from rankpo.tasks.mine import statistics_file
from rankpo.tasks.vector_models import vector_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.mine import Mine
    from rankpo.tasks.session import Session


def run(task: Mine, experiment: Experiment) -> dict[str, object]:
    """Returns the content of statistics.json: the statistics by file, and the settings."""
    settings = experiment.mining
    assert settings is not None
    check_targets(task, experiment, settings)
    session = task.open(experiment)
    logger = session.logger
    data = read(experiment.datasets, open_source(settings.corpus, "passage", experiment.datasets))
    logger.say(f"{len(data.queries)} queries, {data.num_candidates} texts to mine from")
    work = Work(experiment, settings, data, session)
    candidates = work.candidates()
    vectors = None if work.dense is None or work.dense.model.ragged else work.dense.vectors
    # On all ranks: one that only waited for the others would give up after trainer.timeout_minutes.
    mined = mine_all(settings, data, candidates, vectors, work.found, experiment.seed)
    report: dict[str, object] = {"settings": asdict(settings), "recall_against_exact": work.recall, "files": {}}
    if logger.main:
        with written_together(task.outputs(task.targets(settings.variants).values()), Path(task.output)):
            report["files"] = _write(task, work, mined, logger)
            replace_text(statistics_file(Path(task.output)), json.dumps(report, indent=1, ensure_ascii=False))
    processes.barrier()
    return report


def check_targets(task: Mine, experiment: Experiment, settings: MiningSettings) -> None:
    """Raises ConfigError if an output is an input, or exists without overwrite=true."""
    inputs = {path.resolve() for path in dataset_files(experiment.datasets)}
    if settings.corpus not in ("pool", "own"):
        inputs |= {path.resolve() for path in FileTexts(settings.corpus, "passage").files}
    for path in task.outputs(task.targets(settings.variants).values()):
        if any(path.resolve() == read or read in path.resolve().parents for read in inputs):
            raise ConfigError(
                [f"task.output={task.output} would overwrite {path}, an input of the task; choose another"]
            )
        unfinished = left_unfinished(path, Path(task.output))
        if path.exists() and not experiment.overwrite and not unfinished:
            raise ConfigError([f"{path} already exists; set overwrite=true, task.output or another exp_name"])


def _write(
    task: Mine, work: Work, mined: Mapping[str, Sequence[Mined]], logger: MetricsLogger
) -> dict[str, Statistics]:
    """Writes the files of every variant. Returns their statistics by file name."""
    settings, data = work.settings, work.data
    targets = task.targets(settings.variants)
    reports: dict[str, Statistics] = {}
    for name, path in targets.items():
        keep_empty = settings.on_short != "drop"
        written = output.write(path, task.format, data, mined[name], settings.num_negatives, keep_empty)
        values = statistics(data, mined[name], settings.num_negatives)
        values["written"] = written
        if settings.audit_rows:
            values["audit"] = work.audit(mined[name])
        reports[path.name] = values
    logger.table([table_row(name, values) for name, values in reports.items()])
    for name, values in reports.items():
        if values["histogram"] is not None:
            logger.say(f"{name}: {histogram_line(values['histogram'])}")
        logger.say(f"{Path(task.output).parent / name}: {values['written']} queries written")
        if values["without_negatives"]:
            logger.say(emptiness(values))
    return reports


class Work:
    """The stages that run on all processes: search, exclusion and scores, for all queries at once."""

    def __init__(self, experiment: Experiment, settings: MiningSettings, data: MiningData, session: Session) -> None:
        self.settings, self.data, self.device, self.say = settings, data, session.device, session.logger.say
        self.dense: DenseScores | None = None
        if settings.needs_dense:
            model = vector_model(experiment, session, "mining by vectors")
            if model.ragged and settings.sampling == "cluster":
                raise ConfigError(
                    [
                        f"mining.sampling=cluster needs one vector per text, and kind={model.kind} has several; "
                        "set mining.sampling=top or softmax"
                    ]
                )
            self.dense = DenseScores(model, data, experiment.cache_dir, self.say)
        tokenize = None
        if settings.bm25.tokenizer == "model":
            tokenize = experiment.model.open_inputs(self.say, experiment.explicit).tokenizer.tokenize
        search = Search(
            settings=settings,
            data=data,
            dense=self.dense,
            tokenize=tokenize,
            device=self.device,
            seed=experiment.seed,
            say=self.say,
        )
        if self.dense is not None:
            search.check_memory(self.dense.model.typical_size)
        searched = search.run()
        self.found, self.recall = searched.found, searched.recall
        self._scorer: PairScorer | None = None

    @property
    def scorer(self) -> PairScorer:
        """The cross-encoder, loaded when it is first needed."""
        if self._scorer is None:
            assert self.settings.cross_encoder is not None
            loaded = load_saved(self.settings.cross_encoder, str(self.device))
            if not isinstance(loaded, PairScorer):
                raise ConfigError(
                    [
                        f"mining.cross_encoder={self.settings.cross_encoder} is not a reranker; set a folder of kind reranker"
                    ]
                )
            self._scorer = loaded
        return self._scorer

    def candidates(self) -> Iterable[Candidates]:
        """The candidates after exclusion, with the scores that thresholds use; made one by one where that is possible."""
        settings, data = self.settings, self.data
        left = (exclude(settings, data, query, found) for query, found in enumerate(self.found))
        if self.dense is not None and settings.source not in ("dense", "fused"):
            self.dense.encode(gather_numbers(data, self.found))
        if settings.score_by == "source":
            return left
        positives = (np.asarray(query.positives, dtype=np.int64) for query in data.queries)
        asked = ((item, np.concatenate([item.numbers, own])) for item, own in zip(left, positives, strict=True))
        if settings.score_by == "dense":
            dense = self.dense
            assert dense is not None
            return (_scored(item, dense.scores(query, wanted)) for query, (item, wanted) in enumerate(asked))
        kept, numbers = zip(*asked, strict=True)  # Ranks share the pairs.
        self.say(f"scoring {sum(map(len, numbers))} pairs with {settings.cross_encoder}")
        scores = score_pairs(self.scorer, data, numbers, self.device)
        return [_scored(item, values) for item, values in zip(kept, scores, strict=True)]

    def audit(self, mined: Sequence[Mined]) -> dict[str, object]:
        """The fraction of negatives that the cross-encoder scores above the query's lowest positive, on a sample."""
        queries = [item for item in mined if item.negatives]
        places = np.linspace(0, len(queries) - 1, min(self.settings.audit_rows, len(queries))).astype(int)
        above = total = 0
        for item in (queries[place] for place in places.tolist()):
            negatives = np.array([negative.number for negative in item.negatives])
            scores = pair_scores(self.scorer, self.data, item.query, negatives)
            positives = pair_scores(
                self.scorer, self.data, item.query, np.asarray(self.data.queries[item.query].positives)
            )
            above += int((scores > positives.min()).sum())
            total += len(scores)
        return {"queries": len(places), "negatives": total, "above_weakest_positive": above / total if total else None}


def _scored(item: Candidates, scores: np.ndarray) -> Candidates:
    count = len(item.numbers)
    return replace(item, scores=scores[:count], positives=scores[count:])
