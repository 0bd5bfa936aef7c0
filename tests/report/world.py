"""Run folders of reports, written as training and task=evaluate write them: values chosen to be worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

from rankpo.retrieval.shards import Encoding, write_meta
from rankpo.types import Example

DOCUMENTS = {
    "d1": "A nurse in Basel with ten years of practice",
    "d2": "A welder in Basel, certified",
    "d3": "Nursing home manager, <script>alert(1)</script> & co",
    "d4": "Baker in Bern",
}
QUERIES = {"q1": "nurse wanted in Basel", "q2": "welder & fitter <b>now</b>", "q3": "baker"}
GRADES = {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 2}, "q3": {"d4": 1}}


class Corpus:
    """A data set with judgements."""

    name = "dev"

    def fingerprint(self) -> str:
        return "dev"

    def examples(self):
        yield from ()

    def corpus(self):
        yield from DOCUMENTS.items()

    def queries(self):
        yield from QUERIES.items()

    def qrels(self):
        return GRADES


class Preferences:
    """Pairs of a judge, some of whose texts are in the corpus."""

    name = "pairs"

    def fingerprint(self) -> str:
        return "pairs"

    def examples(self):
        yield Example(QUERIES["q1"], (DOCUMENTS["d1"], DOCUMENTS["d3"]), (1.0, 0.0), "q1/0")
        yield Example(QUERIES["q1"], (DOCUMENTS["d2"], DOCUMENTS["d3"]), (0.0, 1.0), "q1/1")
        yield Example(QUERIES["q2"], ("not in the corpus", DOCUMENTS["d2"]), (1.0, 0.0), "q2/0")


def write_evaluation(folder: Path, model: str, values: dict[str, float], ranking: dict[str, list[str]]) -> None:
    """nDCG by query and a ranking of documents, best first."""
    target = folder / "evaluation" / model / "dev"
    target.mkdir(parents=True)
    lines = [json.dumps({"query": query, "ndcg@20": value}) for query, value in values.items()]
    (target / "per_query.jsonl").write_text("\n".join(lines) + "\n")
    (target / "metrics.json").write_text(json.dumps({"metrics": {}}))
    rows = [
        f"{query} Q0 {document} {rank} {10 - rank} rankpo"
        for query, documents in ranking.items()
        for rank, document in enumerate(documents, 1)
    ]
    (target / "run.trec").write_text("\n".join(rows) + "\n")


def write_agreement(folder: Path, model: str, values: dict[str, float]) -> None:
    """Agreement with preferences by pair; pairs of a query are one group."""
    target = folder / "evaluation" / model / "pairs"
    target.mkdir(parents=True)
    lines = [json.dumps({"query": pair, "accuracy": value, "group": pair[:2]}) for pair, value in values.items()]
    (target / "per_query.jsonl").write_text("\n".join(lines) + "\n")
    (target / "metrics.json").write_text(json.dumps({"metrics": {}}))


def write_training(folder: Path, config: dict, losses: list[float], evaluated: list[float]) -> None:
    """metrics.jsonl with a loss at every update and an evaluation at some, and the config."""
    folder.mkdir(parents=True)
    steps = [{"step": n, "time": float(n), "train/loss": value} for n, value in enumerate(losses, 1)]
    steps += [{"step": n * 2, "time": float(n), "eval/dev/ndcg@20": value} for n, value in enumerate(evaluated)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "config.json").write_text(json.dumps(config))


def write_world(root: Path) -> list[Path]:
    """Stage one, RankPO alone from it with two seeds, and one run that replays: four runs of three recipes."""
    stage_one = root / "stage_one"
    write_training(
        stage_one, {"seed": 1, "loss": {"_target_": "X"}, "model": {"load_from": None}}, [2.0, 1.0], [0.3, 0.8]
    )
    (stage_one / "FINAL").mkdir()
    (stage_one / "FINAL" / "rankpo.json").write_text('{"seed": 1}')
    write_evaluation(
        stage_one,
        "model",
        {"q1": 0.9, "q2": 0.8, "q3": 1.0},
        {"q1": ["d1", "d3", "d2"], "q2": ["d2", "d1"], "q3": ["d4"]},
    )
    write_agreement(stage_one, "model", {"q1/0": 1.0, "q1/1": 0.0, "q2/0": 0.5})
    plain = {"_target_": "rankpo.losses.rankpo.RankPOLoss", "replay_weight": 0.0}
    for seed, drop in ((1, 0.5), (2, 0.7)):
        folder = root / f"plain_{seed}"
        config = {"seed": seed, "loss": plain, "model": {"load_from": str(stage_one / "FINAL")}}
        write_training(folder, config, [0.7, 0.5 + seed / 10], [0.8, 0.4])
        values = {"q1": 0.9 - drop, "q2": 0.8 - drop, "q3": 1.0 - drop}
        write_evaluation(folder, "model", values, {"q1": ["d2", "d3", "d1"], "q2": ["d1", "d2"], "q3": ["d1"]})
        write_agreement(folder, "model", {"q1/0": 1.0, "q1/1": 1.0, "q2/0": 1.0})
    folder = root / "replayed"
    config = {"seed": 1, "loss": {**plain, "replay_weight": 0.5}, "model": {"load_from": str(stage_one / "FINAL")}}
    write_training(folder, config, [0.9, 0.6], [0.8, 0.78])
    write_evaluation(
        folder, "model", {"q1": 1.0, "q2": 0.8, "q3": 0.9}, {"q1": ["d3", "d1"], "q2": ["d2", "d1"], "q3": ["d4"]}
    )
    write_agreement(folder, "model", {"q1/0": 0.0, "q1/1": 1.0, "q2/0": 1.0})
    return [stage_one, root / "plain_1", root / "plain_2", folder]


def write_search_of_forms(
    folder: Path, forms: list[dict], *, dtype="float32", megabytes=8.0, ndcg=0.5, metrics=("ndcg@10",)
) -> None:
    """search.json of task=search over 3 queries in .5 seconds, with the rows of task.forms."""
    values = {"queries": 3, "documents": 5, "backend": "exact", "seconds": 0.5, "recall against exact": 1.0}
    values |= {"beir/ndcg@10": ndcg, "forms": forms, "dtype": dtype, "MB": megabytes}
    values["settings"] = {"index": str(folder / "embeddings"), "metrics": list(metrics)}
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "search.json").write_text(json.dumps(values))


def write_index(folder: Path, *, rows: int, dtype: str, num_bytes: int) -> None:
    """The description of a folder of embeddings, and one shard of this size."""
    shared = {"model": "m", "inputs": "i", "texts": "t", "role": "passage", "shard_size": 8, "settings": {}}
    folder.mkdir(parents=True, exist_ok=True)
    write_meta(folder, Encoding(**shared, num_rows=rows, dim=4, dtype=dtype), complete=True)
    (folder / "shard-00000.npy").write_bytes(bytes(num_bytes))
