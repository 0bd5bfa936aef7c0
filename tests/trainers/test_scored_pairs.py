"""Scored pairs of texts from a file to Spearman and Pearson: training lowers the loss, the figures are the peer's."""

from __future__ import annotations

import json
import random
from math import nan

import numpy as np
import pytest
from scipy import stats

from rankpo.data.shape import Shape
from rankpo.errors import ConfigError
from rankpo.evaluation.scored_pairs import ScoredPairsEvaluator
from rankpo.types import Example
from tests.runs import TINY, train, trainer_of

WORDS = [
    "red",
    "green",
    "blue",
    "round",
    "square",
    "fast",
    "slow",
    "old",
    "new",
    "warm",
    "cold",
    "dark",
    "light",
    "tall",
    "short",
]


def sentence(rng: random.Random) -> list[str]:
    return rng.sample(WORDS, 5)


def write_pairs(path, count: int, seed: int, top: float = 5.0) -> list[tuple[str, str, float]]:
    """Pairs that share 0 to 5 of five words, scored by how many, on a scale up to `top`."""
    rng = random.Random(seed)
    pairs = []
    for number in range(count):
        first = sentence(rng)
        shared = rng.randrange(6)
        others = [word for word in WORDS if word not in first]
        second = first[:shared] + rng.sample(others, 5 - shared)
        rng.shuffle(second)
        pairs.append((f"{number} " + " ".join(first), " ".join(second), top * shared / 5))
    lines = [json.dumps({"sentence1": a, "sentence2": b, "score": score}) for a, b, score in pairs]
    path.write_text("\n".join(lines))
    return pairs


def keys(group: str, path) -> tuple[str, ...]:
    mapped = {
        "path": path,
        "query": "sentence1",
        "content": "sentence2",
        "label": "score",
        "min_label": 0,
        "max_label": 5,
    }
    return (f"{group}=[jsonl]", *(f"{group}.jsonl.{name}={value}" for name, value in mapped.items()))


@pytest.mark.parametrize("loss", ["cosent", "angle", "cosine_mse"])
def test_a_run_on_a_file_of_scored_pairs(tmp_path, loss):
    """FINAL's correlations are those of sentence-transformers' own evaluator; the loss falls."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    pairs = write_pairs(tmp_path / "train.jsonl", 64, 1)
    options = (f"loss={loss}", "trainer.batch_size=16", "trainer.epochs=6", "optimizer=adamw", "optimizer.lr=2e-3")
    data = (*keys("datasets", tmp_path / "train.jsonl"), *keys("eval_datasets", tmp_path / "train.jsonl"))
    train(*TINY, *options, *data, f"cache_dir={tmp_path}", "exp_name=sts")
    rows = [json.loads(line) for line in (tmp_path / "sts" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    found = [row for row in rows if "eval/jsonl/spearman" in row]
    assert found[-1]["eval/jsonl/spearman"] > found[0]["eval/jsonl/spearman"] + 0.01
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "sts" / "FINAL"), device="cpu")
    first, second, scores = zip(*pairs, strict=True)
    # this tiny model has no prompts: both columns are read alike, as there
    theirs = EmbeddingSimilarityEvaluator(list(first), list(second), [score / 5 for score in scores])(model)
    for name in ("spearman", "pearson"):
        assert found[-1][f"eval/jsonl/{name}"] == pytest.approx(theirs[f"{name}_cosine"], abs=1e-5)


class Pairs:
    name = "pairs"

    def __init__(self, labels: list[float]) -> None:
        self.labels = labels

    def fingerprint(self) -> str:
        return f"pairs {self.labels}"

    def examples(self):
        for number, label in enumerate(self.labels):
            yield Example(f"q{number}", (f"c{number}",), (label,), str(number))


class Table:
    """Only what `measure` reads."""

    def __init__(self, relevance: list[float]) -> None:
        self.relevance = np.array(relevance, dtype=np.float32)


def measured(labels: list[float], scores: list[float]):
    evaluator = ScoredPairsEvaluator(Pairs(labels), "unused", lambda message: None)
    return evaluator.measure(np.array(scores), Table(labels))


def test_correlations_by_hand_with_ties():
    """Labels 0, 0, 1, 2 rank 1.5, 1.5, 3, 4; scores 1, 2, 2, 4 rank 1, 2.5, 2.5, 4: Σ of products of the ranks less
    their mean 2.5 is 1.5 + 0 + 0 + 2.25 = 3.75, over √(4.5 · 4.5)."""
    found = measured([0, 0, 1, 2], [1, 2, 2, 4]).metrics
    assert found["spearman"] == pytest.approx(3.75 / 4.5)
    assert found["pearson"] == pytest.approx(np.corrcoef([0, 0, 1, 2], [1, 2, 2, 4])[0, 1])


def test_a_scale_of_labels_changes_nothing_and_order_alone_matters_to_spearman():
    labels, scores = [0.0, 3.0, 1.0, 2.0, 5.0], [0.1, 0.5, 0.4, 0.2, 0.3]
    assert measured([10 * label - 7 for label in labels], scores).metrics == pytest.approx(
        measured(labels, scores).metrics
    )
    assert measured(labels, np.exp(scores)).metrics["spearman"] == stats.spearmanr(labels, scores).statistic


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [([1, 1, 1], [1, 2, 3], "all 3 labels are equal"), ([1, 2], [5, 5], "all 2 scores are equal")],
)
def test_undefined_correlations_say_why(labels, scores, reason):
    found = measured(labels, scores)
    assert not found.metrics and found.undefined == {"spearman": reason, "pearson": reason}
    assert found.counts == {"pairs": len(labels)}


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"eval_datasets\.pairs: a score is nan"):
        measured([1, 2], [1, nan])


class Lists(Pairs):
    def examples(self):
        for number, label in enumerate(self.labels):
            yield Example(f"q{number}", ("a", "b"), (label, 0.0), str(number))


def test_what_is_measured_as_scored_pairs(tmp_path):
    assert Shape.of(Pairs([1.0, 2.0]).examples()).mostly_single
    assert not Shape.of(Lists([1.0, 2.0]).examples()).mostly_single
    assert not Shape.of(Pairs([]).examples()).mostly_single
    write_pairs(tmp_path / "dev.jsonl", 4, 1)
    options = ("loss=cosent", "datasets=[toy_graded]", *keys("eval_datasets", tmp_path / "dev.jsonl"))
    (evaluator,) = trainer_of(*TINY, *options, f"cache_dir={tmp_path}").evaluators
    assert isinstance(evaluator, ScoredPairsEvaluator)


def test_labels_on_a_scale_above_1_are_refused_by_the_squared_error(tmp_path):
    write_pairs(tmp_path / "train.jsonl", 8, 1)
    raw = [key for key in keys("datasets", tmp_path / "train.jsonl") if "jsonl.m" not in key]
    trainer = trainer_of(*TINY, "loss=cosine_mse", *raw, f"cache_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"loss=cosine_mse needs labels in \[-1, 1\], got [345]; set datasets"):
        for step in range(2):
            trainer.prepare(step)


def test_rerankers_have_no_embeddings_for_them(tmp_path):
    with pytest.raises(ConfigError, match="CoSENTLoss needs embeddings; model of random weights is of kind reranker"):
        trainer_of("model=tiny_bert", "kind=reranker", "loss=cosent", "datasets=[toy_graded]", f"cache_dir={tmp_path}")
