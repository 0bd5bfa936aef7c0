"""task=mine: hard negatives for the next stage; training file, meta file, statistics.json and a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.mining.settings import MiningSettings
from rankpo.retrieval.corpus import FileTexts, dataset_files, open_source
from rankpo.storage.atomic import replace_text
from rankpo.storage.several import left_unfinished, written_together
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np

    from rankpo.config.experiment import Experiment
    from rankpo.mining.data import MiningData
    from rankpo.mining.pipeline import Candidates, Mined
    from rankpo.mining.scores import DenseScores
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.base import Session

FORMATS = ("contrastive", "pos_neg", "triplet", "n_tuple", "labeled_list", "ids")


@dataclass(frozen=True, kw_only=True)
class Mine(Task):
    """Negatives for every query of `datasets` that has a positive, as `mining` says.

    output: the training file; NAME.meta.jsonl and statistics.json stand beside it, and NAME.corpus.jsonl with the texts
    of ids. format: what a line is. Equal queries are one line with the positives of all their rows. The same command
    writes again what a full disk or a kill left unfinished. Raises ConfigError where an input would be
    overwritten, or, without overwrite=true, an earlier output.
    """

    output: str = "mined.jsonl"
    format: str = "contrastive"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"output must end in .jsonl, got {self.output!r}")

    def __call__(self, experiment: Experiment) -> dict[str, Any]:
        """statistics.json's content: by file, and the settings."""
        from rankpo.mining.data import read
        from rankpo.mining.pipeline import mine_all
        from rankpo.runs import processes

        settings = experiment.mining
        if not experiment.datasets:
            raise ConfigError(["datasets is empty; choose what to mine for, such as datasets=[rankpo]"])
        targets = self.targets(settings)
        self._check_targets(experiment, list(targets.values()))
        session = self.open(experiment)
        logger = session.logger
        data = read(experiment.datasets, open_source(settings.corpus, "passage", experiment.datasets))
        logger.say(f"{len(data.queries)} queries, {data.num_candidates} texts to mine from")
        work = Work(experiment, settings, data, session)
        candidates = work.candidates()
        vectors = None if work.dense is None else work.dense.vectors
        mined = mine_all(settings, data, candidates, vectors, work.found, experiment.seed)
        report = {"settings": asdict(settings), "recall_against_exact": work.recall, "files": {}}
        if logger.main:
            with written_together(self._outputs(targets.values()), Path(self.output)):
                report["files"] = self._write(settings, data, mined, targets, work, logger)
                replace_text(statistics_file(Path(self.output)), json.dumps(report, indent=1, ensure_ascii=False))
        processes.barrier()
        return report

    @property
    def _beside(self) -> tuple[str, ...]:
        return ("meta", "corpus") if self.format == "ids" else ("meta",)

    def targets(self, settings: MiningSettings) -> dict[str, Path]:
        """The training file of each variant."""
        path = Path(self.output)
        return {name: path.with_name(f"{path.stem}{name}.jsonl") for name in settings.variants}

    def _outputs(self, targets: Collection[Path]) -> list[Path]:
        """All files that the task writes, in the order in which they are written."""
        beside = [path.with_suffix(f".{kind}.jsonl") for path in targets for kind in self._beside]
        return [*targets, *beside, statistics_file(Path(self.output))]

    def _check_targets(self, experiment: Experiment, targets: Sequence[Path]) -> None:
        settings = experiment.mining
        inputs = {path.resolve() for path in dataset_files(experiment.datasets)}
        if settings.corpus not in ("pool", "own"):
            inputs |= {path.resolve() for path in FileTexts(settings.corpus, "passage").files}
        for path in self._outputs(targets):
            if any(path.resolve() == read or read in path.resolve().parents for read in inputs):
                raise ConfigError([f"task.output={self.output} would write {path}, which is read; choose another"])
            unfinished = left_unfinished(path, Path(self.output))
            if path.exists() and not experiment.overwrite and not unfinished:
                raise ConfigError([f"{path} is there already; set overwrite=true, task.output or another exp_name"])

    def _write(
        self,
        settings: MiningSettings,
        data: MiningData,
        mined: Mapping[str, Sequence[Mined]],
        targets: Mapping[str, Path],
        work: Work,
        logger: MetricsLogger,
    ) -> dict[str, object]:
        from rankpo.mining import output, statistics

        reports: dict[str, Any] = {}
        for name, path in targets.items():
            keep_empty = settings.on_short != "drop"
            written = output.write(path, self.format, data, mined[name], settings.num_negatives, keep_empty)
            values = statistics.statistics(data, mined[name], settings.num_negatives)
            values["written"] = written
            if settings.audit_rows:
                values["audit"] = work.audit(mined[name])
            reports[path.name] = values
        logger.table([statistics.table_row(name, values) for name, values in reports.items()])
        for name, values in reports.items():
            if values["histogram"] is not None:
                logger.say(f"{name}: {statistics.histogram_line(values['histogram'])}")
            logger.say(f"{Path(self.output).parent / name}: {values['written']} queries written")
            if values["without_negatives"]:
                logger.say(statistics.emptiness(values))
        return reports


def statistics_file(output: Path) -> Path:
    """statistics.json beside mined.jsonl; NAME.statistics.json beside another name."""
    return output.with_name("statistics.json" if output.stem == "mined" else f"{output.stem}.statistics.json")


class Work:
    """The stages that all processes share: search, exclusion and scores, for all queries at once."""

    def __init__(
        self,
        experiment: Experiment,
        settings: MiningSettings,
        data: MiningData,
        session: Session,
    ) -> None:
        from rankpo.mining.candidates import search
        from rankpo.mining.scores import DenseScores
        from rankpo.retrieval.dense import check_memory
        from rankpo.tasks.encode import vector_model

        device, say = session.device, session.logger.say
        self.settings, self.data, self.device, self.say = settings, data, device, say
        self.dense: DenseScores | None = None
        if settings.needs_dense:
            model = vector_model(experiment, session, "mining by vectors")
            self.dense = DenseScores(model, data, experiment.cache_dir, say)
            if settings.source in ("dense", "fused"):
                faiss = settings.faiss if settings.backend == "faiss" else None
                size = (len(data.queries), data.num_candidates, model.dim, settings.top_k)
                check_memory(*size, device, say, faiss)
        tokenize = None
        if settings.bm25.tokenizer == "model":
            tokenize = experiment.model.open_inputs(say, experiment.explicit).tokenizer.tokenize
        searched = search(settings, data, self.dense, tokenize, device, experiment.seed, say)
        self.found, self.recall = searched.found, searched.recall
        self._scorer: Any = None

    @property
    def scorer(self) -> Any:
        """The cross-encoder, loaded when it is first needed."""
        if self._scorer is None:
            import rankpo

            assert self.settings.cross_encoder is not None
            self._scorer = rankpo.load(self.settings.cross_encoder, str(self.device))
            if not hasattr(self._scorer, "compute_score"):
                raise ConfigError([f"mining.cross_encoder={self.settings.cross_encoder} is no reranker"])
        return self._scorer

    def candidates(self) -> list[Candidates]:
        """What the exclusions leave, with the scores that thresholds use."""
        import numpy as np

        from rankpo.mining import candidates, pipeline
        from rankpo.mining.scores import score_pairs

        settings, data = self.settings, self.data
        left = [pipeline.exclude(settings, data, query, found) for query, found in enumerate(self.found)]
        if self.dense is not None and settings.source not in ("dense", "fused"):
            self.dense.encode(candidates.gather_numbers(data, self.found))
        if settings.score_by == "source":
            return left
        positives = [np.asarray(query.positives, dtype=np.int64) for query in data.queries]
        wanted = [np.concatenate([item.numbers, own]) for item, own in zip(left, positives, strict=True)]
        if settings.score_by == "dense":
            assert self.dense is not None
            scores = [self.dense.scores(query, numbers) for query, numbers in enumerate(wanted)]
        else:
            self.say(f"scoring {sum(map(len, wanted))} pairs with {settings.cross_encoder}")
            scores = score_pairs(self.scorer, data, wanted, self.device)
        return [_scored(item, values) for item, values in zip(left, scores, strict=True)]

    def audit(self, mined: Sequence[Mined]) -> dict[str, object]:
        """What share of negatives the cross-encoder puts above the query's lowest positive, over some queries."""
        import numpy as np

        from rankpo.mining.scores import pair_scores

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
