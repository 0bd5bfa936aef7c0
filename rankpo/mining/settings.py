"""Settings of mining: the keys of `mining=…`, checked before any file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankpo.retrieval.bm25 import Bm25Settings
from rankpo.retrieval.corpus import check_source
from rankpo.retrieval.faiss_index import FaissSettings
from rankpo.retrieval.fusion import METHODS as FUSIONS

SOURCES = ("dense", "bm25", "fused", "run", "random")
SCORERS = ("source", "dense", "cross_encoder")
AGAINST = ("min", "max", "mean")
RANGES = ("kept", "retrieved")
SAMPLINGS = ("top", "random", "softmax", "cluster")
ON_SHORT = ("fewer", "drop", "relax", "fill_random", "error")
CHOICES = {
    "source": SOURCES,
    "backend": ("exact", "faiss"),
    "fusion": FUSIONS,
    "score_by": SCORERS,
    "margin_against": AGAINST,
    "range_counts": RANGES,
    "sampling": SAMPLINGS,
    "on_short": ON_SHORT,
}


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Keys for candidates, exclusions, thresholds, rank range and sampling, in the order of their application.

    corpus: "pool" (all candidates of the datasets), "own" (the datasets' corpora), or a file, folder or glob.
    source: dense (backend exact or faiss), bm25, fused (both), run (a TREC file), random. top_k: its depth.
    near_duplicates: minimum Jaccard similarity of character 5-grams at which a candidate counts as a copy of the query,
    a positive or a better candidate; None compares for equality. cross_encoder: a folder of a saved reranker.
    score_by: the source of scores for thresholds and statistics. reorder: sorts candidates by these scores.
    max_score, min_score, absolute_margin, relative_margin (fraction of 1), margin_against: see `filters.ceiling`.
    range_min, range_max: zero-based, half-open, among the remaining candidates (`kept`) or in the source's
    list (`retrieved`). max_uses: of one text as a negative, over all queries.
    temperature: of softmax, in units of score_by. num_clusters, lambdas: of cluster; one file for each λ.
    on_short: the treatment of a query with fewer than num_negatives. audit_rows: the number of queries whose negatives
    the cross-encoder scores to estimate the fraction of false ones; 0 disables this.
    """

    corpus: str = "pool"
    source: str = "dense"
    top_k: int = 100
    backend: str = "exact"
    faiss: FaissSettings = field(default_factory=FaissSettings)
    bm25: Bm25Settings = field(default_factory=Bm25Settings)
    fusion: str = "reciprocal_rank"
    dense_weight: float = 1.0
    bm25_weight: float = 1.0
    run: str | None = None
    near_duplicates: float | None = None
    cross_encoder: str | None = None
    score_by: str = "source"
    reorder: bool = False
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    margin_against: str = "min"
    range_min: int = 0
    range_max: int | None = None
    range_counts: str = "kept"
    max_uses: int | None = None
    num_negatives: int = 10
    sampling: str = "top"
    temperature: float = 1.0
    num_clusters: int = 10
    lambdas: Sequence[float] = (0.5,)
    on_short: str = "fewer"
    audit_rows: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        self._check_numbers()
        self._check_scores()
        check_source(self.corpus, "corpus")
        if self.source == "run":
            if self.run is None:
                raise ValueError("run must name a TREC run with source=run, got null")
            if not Path(self.run).is_file():
                raise FileNotFoundError(f"run: {self.run} does not exist")

    def _check_numbers(self) -> None:
        for name in ("top_k", "num_negatives", "num_clusters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("range_min", "audit_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.range_max is not None and self.range_max <= self.range_min:
            raise ValueError(f"range_max must be > range_min={self.range_min} or null, got {self.range_max}")
        if self.max_uses is not None and self.max_uses < 1:
            raise ValueError(f"max_uses must be >= 1 or null, got {self.max_uses}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates must be in (0, 1] or null, got {self.near_duplicates}")
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be >= 0 or null, got {value}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not self.lambdas or not all(0 < value <= 1 for value in self.lambdas):
            raise ValueError(f"lambdas must be numbers in (0, 1], got {list(self.lambdas)}")
        if len(set(self.lambdas)) < len(self.lambdas):
            raise ValueError(f"lambdas must be different, got {list(self.lambdas)}, since each one writes its own file")
        for name in ("dense_weight", "bm25_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def _check_scores(self) -> None:
        if self.cross_encoder is None and (self.score_by == "cross_encoder" or self.audit_rows):
            raise ValueError("cross_encoder must name a saved reranker with score_by=cross_encoder or audit_rows")
        if self.cross_encoder is not None and self.score_by != "cross_encoder" and not self.audit_rows:
            raise ValueError("score_by must be cross_encoder, or audit_rows > 0, if cross_encoder is set")
        if self.score_by != "source":
            return
        if self.has_margin and self.source not in ("dense", "bm25"):
            raise ValueError(
                f"score_by must be dense or cross_encoder for margins with source={self.source}, "
                "which has no scores of positives"
            )
        needs_scores = self.max_score is not None or self.min_score is not None or self.sampling == "softmax"
        if needs_scores and self.source == "random":
            raise ValueError("score_by must be dense or cross_encoder for scores with source=random, which has none")

    @property
    def has_margin(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def needs_dense(self) -> bool:
        """Whether any step needs embeddings."""
        return self.source in ("dense", "fused") or self.score_by == "dense" or self.sampling == "cluster"

    @property
    def variants(self) -> dict[str, float]:
        """λ by the suffix of its file; one variant with an empty suffix if λ is not used."""
        if self.sampling != "cluster":
            return {"": 1.0}
        if len(self.lambdas) == 1:
            return {"": self.lambdas[0]}
        return {f"-lambda{value:g}": value for value in self.lambdas}
