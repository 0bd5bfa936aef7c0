"""Every option of config/mining on RankPO's real sample, with its own numbers: negatives and statistics by brute force."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rankpo.config.compose import compose
from rankpo.tasks.base import Task
from rankpo.tasks.vector_models import vector_model
from tests.runs import ROOT, TINY, train

TOP_K, WANTED = 100, 5
# larger random weights than usual, and no mean over tokens: texts are told apart, and margins cut some of them
MODEL = (*TINY, "model.pooling=cls", "++model.random.initializer_range=1.0")


@dataclass
class World:
    """The file read by plain json; vectors by the model's own encode; products in float64."""

    path: Path
    cache: Path
    positives: dict[str, list[str]]
    pool: list[str]
    scores: dict[str, dict[str, float]]
    vectors: dict[str, np.ndarray]

    def ranked(self, query: str) -> list[str]:
        return sorted(self.pool, key=lambda text: -self.scores[query][text])[:TOP_K]

    def lowest(self, query: str) -> float:
        return min(self.scores[query][text] for text in self.positives[query])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    path = ROOT.parent / "shared" / "data" / "rankpo" / "contrastive.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there: real samples are not part of the project")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    positives = {record["query"].strip(): [text.strip() for text in record["positives"]] for record in records}
    together = [text.strip() for record in records for text in [*record["positives"], *record["negatives"]]]
    pool = list(dict.fromkeys(together))
    cache = tmp_path_factory.mktemp("cache")
    experiment = compose([*options(path, cache, "unused", "dense")])
    model = vector_model(experiment, Task().open(experiment))
    vectors = model.encode(pool)
    asked = model.encode(list(positives), "query")
    products = asked.astype(np.float64) @ vectors.astype(np.float64).T
    scores = {query: dict(zip(pool, row.tolist(), strict=True)) for query, row in zip(positives, products, strict=True)}
    return World(path, cache, positives, pool, scores, dict(zip(pool, vectors, strict=True)))


def options(path: Path, cache: Path, name: str, mining: str, *more: str) -> list[str]:
    data = ["task=mine", f"mining={mining}", "datasets=[rankpo]", f"datasets.rankpo.path={path}"]
    return [*MODEL, *data, f"mining.num_negatives={WANTED}", f"cache_dir={cache}", f"exp_name={name}", *more]


def mine(world: World, mining: str, *more: str) -> dict[str, tuple[dict[str, list[str]], list[dict], dict]]:
    """{file: (negatives by query, meta records, statistics)}; what holds for every option is checked here."""
    folder = train(*options(world.path, world.cache, mining, mining, *more)).run_dir
    found = {}
    for name, statistics in json.loads((folder / "statistics.json").read_text())["files"].items():
        records = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        meta = [json.loads(line) for line in (folder / name).with_suffix(".meta.jsonl").read_text().splitlines()]
        assert [record["query"] for record in records] == list(world.positives)
        for record in records:
            known = world.positives[record["query"]]
            assert set(record["positives"]) == set(known)
            assert not set(record["negatives"]) & {*known, record["query"]}
            assert len(set(record["negatives"])) == len(record["negatives"]) <= WANTED
            assert set(record["negatives"]) <= set(world.pool)
        found[name] = {record["query"]: record["negatives"] for record in records}, meta, statistics
    return found


def only(found):
    ((name, parts),) = found.items()
    assert name == "mined.jsonl"
    return parts


def quantile(values: list[float], q: float) -> float:
    """Between the neighbours, in proportion."""
    place = q * (len(values) - 1)
    low = math.floor(place)
    values = sorted(values)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def check_statistics(
    world: World, negatives: dict[str, list[str]], statistics: dict, excluded: int, beyond: int
) -> None:
    """Every number of a dense ranking's statistics, from texts and products alone.

    excluded: positives among the candidates; beyond: candidates that a margin removed.
    """
    pairs = [(query, text) for query, texts in negatives.items() for text in texts]
    scores = [world.scores[query][text] for query, text in pairs]
    positives = [world.scores[query][text] for query, texts in world.positives.items() for text in texts]
    gaps = [world.lowest(query) - world.scores[query][text] for query, text in pairs]
    ranks = [world.ranked(query).index(text) for query, text in pairs]
    uses = [sum(text in texts for texts in negatives.values()) for text in {text for _, text in pairs}]
    assert (statistics["queries"], statistics["texts"], statistics["candidates"]) == (10, 124, 10 * TOP_K)
    assert statistics["removed"]["positives"] == excluded
    assert statistics["removed"]["margin"] == beyond
    assert statistics["kept"] == len(pairs)
    assert statistics["short"] == sum(len(texts) < WANTED for texts in negatives.values())
    assert (statistics["distinct_negatives"], statistics["most_uses"]) == (len(uses), max(uses))
    assert statistics["positive_mean"] == pytest.approx(sum(positives) / len(positives), abs=1e-5)
    assert statistics["negative_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95)):
        assert statistics["gap"][name] == pytest.approx(quantile(gaps, share), abs=1e-5)
        assert statistics["rank"][name] == pytest.approx(quantile(ranks, share))
    assert statistics["above_weakest_positive"] == pytest.approx(sum(gap < 0 for gap in gaps) / len(gaps))
    assert statistics["hardest"][0]["gap"] == pytest.approx(min(gaps), abs=1e-5)
    edges = statistics["histogram"]["edges"]
    assert edges[0] == pytest.approx(min(scores + positives), abs=1e-5)
    assert edges[-1] == pytest.approx(max(scores + positives), abs=1e-5)
    for name, values in (("positives", positives), ("negatives", scores)):
        counts = statistics["histogram"][name]
        below = [sum(value < edge for value in values) for edge in edges[1:-1]]
        # an edge may lie within rounding of a score: cumulative counts are off by one there at most
        assert all(abs(sum(counts[: n + 1]) - count) <= 1 for n, count in enumerate(below))
        assert sum(counts) == len(values)


def test_every_option_has_a_test_here():
    tested = {name.removeprefix("test_option_") for name in globals() if name.startswith("test_option_")}
    assert tested == {path.stem for path in (ROOT / "config" / "mining").glob("*.yaml")}


def test_option_dense(world):
    negatives, _, statistics = only(mine(world, "dense"))
    for query, texts in negatives.items():
        assert texts == [text for text in world.ranked(query) if text not in world.positives[query]][:WANTED]
    excluded = sum(text in world.positives[query] for query in negatives for text in world.ranked(query))
    check_statistics(world, negatives, statistics, excluded, 0)


def test_option_positive_aware(world):
    """At most 95 % of the weakest positive's score."""
    negatives, _, statistics = only(mine(world, "positive_aware"))
    excluded = beyond = 0
    for query, texts in negatives.items():
        bound = world.lowest(query) - 0.05 * abs(world.lowest(query))
        others = [text for text in world.ranked(query) if text not in world.positives[query]]
        assert texts == [text for text in others if world.scores[query][text] <= bound][:WANTED]
        excluded += TOP_K - len(others)
        beyond += sum(world.scores[query][text] > bound for text in others)
    assert beyond > 0
    check_statistics(world, negatives, statistics, excluded, beyond)


def test_option_rankpo(world):
    """Nine files from one encoding; clusters are scikit-learn's on the same survivors; a small λ spreads over more."""
    from sklearn.cluster import KMeans

    found = mine(world, "rankpo")
    assert list(found) == [f"mined-lambda0.{tenths}.jsonl" for tenths in range(9, 0, -1)]
    labels = {}
    for query, known in world.positives.items():
        survivors = [text for text in world.ranked(query) if text not in known]
        table = np.stack([world.vectors[text] for text in survivors])
        means = KMeans(10, n_init=1, random_state=42).fit_predict(table)  # 42: the config's seed
        labels[query] = dict(zip(survivors, means.tolist(), strict=True))
    excluded = sum(text in world.positives[query] for query in labels for text in world.ranked(query))
    spread = {}
    for name, (negatives, meta, statistics) in found.items():
        for (query, texts), item in zip(negatives.items(), meta, strict=True):
            assert [n["cluster"] for n in item["negatives"]] == [labels[query][text] for text in texts]
            assert [n["rank"] for n in item["negatives"]] == [world.ranked(query).index(text) for text in texts]
        spread[name] = sum(len({n["cluster"] for n in item["negatives"]}) for item in meta)
        check_statistics(world, negatives, statistics, excluded, 0)
    assert spread["mined-lambda0.1.jsonl"] > spread["mined-lambda0.9.jsonl"]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).lower())


@pytest.fixture(scope="module")
def by_words(world: World) -> dict[str, dict[str, float]]:
    """BM25 with k1 1.5 and b .75, as Lucene has it: Σ ln(1 + (N - df + .5)/(df + .5)) · tf/(tf + k1·(1 - b + b·l/mean))."""
    documents = {text: words(text) for text in world.pool}
    mean = sum(map(len, documents.values())) / len(documents)
    sets = {text: set(tokens) for text, tokens in documents.items()}
    found: dict[str, dict[str, float]] = {}
    for query in world.positives:
        asked = words(query)
        df = {word: sum(word in tokens for tokens in sets.values()) for word in set(asked)}
        idf = {word: math.log(1 + (len(documents) - count + 0.5) / (count + 0.5)) for word, count in df.items()}
        found[query] = {}
        for text, tokens in documents.items():
            counts = {word: tokens.count(word) for word in sets[text] & set(asked)}
            norm = 1.5 * (0.25 + 0.75 * len(tokens) / mean)
            parts = (idf[word] * counts[word] / (counts[word] + norm) for word in asked if word in counts)
            found[query][text] = sum(parts)
    return found


def best(scores: dict[str, float], positive_only: bool = True) -> list[str]:
    ranked = sorted(scores, key=lambda text: -scores[text])[:TOP_K]
    return [text for text in ranked if scores[text] > 0] if positive_only else ranked


def test_option_bm25(world, by_words):
    scores = by_words
    negatives, meta, statistics = only(mine(world, "bm25"))
    for (query, texts), item in zip(negatives.items(), meta, strict=True):
        allowed = [text for text in best(scores[query]) if text not in world.positives[query]]
        assert texts == allowed[:WANTED]
        assert [n["score"] for n in item["negatives"]] == pytest.approx([scores[query][t] for t in texts], rel=1e-4)
    values = [scores[query][text] for query, texts in negatives.items() for text in texts]
    assert statistics["negative_mean"] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_option_fused(world, by_words):
    """Σ 1/(60 + rank) over both rankings."""
    scores = by_words
    negatives, _, statistics = only(mine(world, "fused"))
    total = {}
    for query, texts in negatives.items():
        fused = dict.fromkeys(world.pool, 0.0)
        for ranking in (world.ranked(query), best(scores[query])):
            for rank, text in enumerate(ranking, 1):
                fused[text] += 1 / (60 + rank)
        allowed = [text for text in best(fused) if text not in world.positives[query]]
        assert [fused[text] for text in texts] == pytest.approx([fused[text] for text in allowed[:WANTED]], rel=1e-12)
        total[query] = sum(fused[text] for text in texts)
    assert statistics["negative_mean"] == pytest.approx(sum(total.values()) / statistics["kept"])
    assert statistics["positive_mean"] is None, "a fused ranking gives positives no score"


def test_option_random(world):
    """Whom chance picks is not predicted; it depends on the seed, and picks no positive (`mine` looks)."""
    negatives, meta, statistics = only(mine(world, "random"))
    assert all(len(texts) == WANTED for texts in negatives.values())
    assert all(n["score"] is None for item in meta for n in item["negatives"])
    assert (statistics["kept"], statistics["histogram"]) == (10 * WANTED, None)
    other, _, _ = only(mine(world, "random", "seed=2", "exp_name=other"))
    assert other != negatives


def test_option_run(world, tmp_path):
    """The dense ranking as a TREC file gives the dense option's negatives."""
    _, meta, _ = only(mine(world, "dense", "exp_name=again"))
    from hashlib import sha256

    lines = [
        f"{item['id']} Q0 {sha256(text.encode()).hexdigest()[:16]} {rank} {world.scores[query][text]:.9f} x\n"
        for query, item in zip(world.positives, meta, strict=True)
        for rank, text in enumerate(world.ranked(query), 1)
    ]
    (tmp_path / "run.trec").write_text("".join(lines))
    negatives, _, statistics = only(mine(world, "run", f"mining.run={tmp_path}/run.trec"))
    for query, texts in negatives.items():
        assert texts == [text for text in world.ranked(query) if text not in world.positives[query]][:WANTED]
    excluded = sum(text in world.positives[query] for query in negatives for text in world.ranked(query))
    assert statistics["removed"]["positives"] == excluded
