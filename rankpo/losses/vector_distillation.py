"""Distillation losses on a teacher's embeddings and on the similarities between texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rankpo.losses.base import require_choice, require_not_negative
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.maths import at_least_float32
from rankpo.losses.vectors import Similarity, inner_products, one_each, taken
from rankpo.types import Batch, LossOutput, Term, Vectors

MOST_TEXTS = 256  # 256 texts form 33,000 pairs, and comparing these takes half a billion numbers.


@dataclass(frozen=True, kw_only=True)
class VectorDistillLoss(InBatchLoss):
    """weight·distance + similarity_weight·similarity + triplet_weight·triplet, each a separate mean.

    Over queries and candidates of the update, with e the model's and t the teacher's embedding of a text:
    distance: 1 - cos(e, t) (`cosine`), mean of (e - t)² over dimensions (`mse`) or |e - t| (`l2`).
    similarity: mean over all pairs of distinct texts of (cos(e_i, e_j) - cos(t_i, t_j))².
    triplet: mean over pairs of such pairs of max(0, margin - (cos of the pair that the teacher finds more similar -
    cos of the other)). Both terms allow embeddings of different sizes, and are means over `dims`, truncations of e
    to its first dimensions. The weights 10, 200 and 20 with margin .015 are those of https://arxiv.org/abs/2412.19048
    (Jasper and Stella). teacher: folder of an embedding model, or None for the model that the run starts from; its
    embeddings of all texts are computed once, before the run, and cached under cache_dir.
    """

    teacher: str | None = None
    distance: str = "cosine"
    weight: float = 1.0
    similarity_weight: float = 0.0
    triplet_weight: float = 0.0
    triplet_margin: float = 0.015
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_choice(("cosine", "mse", "l2"), distance=self.distance)
        weights = {"similarity_weight": self.similarity_weight, "triplet_weight": self.triplet_weight}
        require_not_negative(weight=self.weight, triplet_margin=self.triplet_margin, **weights)
        if not self.weight and not any(weights.values()):
            raise ValueError("weight, similarity_weight and triplet_weight are all 0; set at least one of them")
        if self.dims is not None and (not self.dims or any(dim < 1 for dim in self.dims)):
            raise ValueError(f"dims must be integers >= 1 or null, got {list(self.dims)}")
        if self.dims is not None and not any(weights.values()):
            raise ValueError(f"dims={list(self.dims)} needs similarity_weight or triplet_weight > 0")

    @property
    def by_inner_products(self) -> bool:
        return False

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({"teacher"})

    @property
    def teacher_model(self) -> str | None:
        return self.teacher

    def check_sizes(self, model: int, teacher: int) -> None:
        if self.weight and model != teacher:
            raise ValueError(
                f"the teacher's embeddings have {teacher} dimensions and the model's {model}; add a projection, which is "
                f"trained and saved in FINAL: model.layers=[{{type: Dense, out_features: {teacher}}}]; or set loss.weight=0 "
                "with loss.similarity_weight and loss.triplet_weight, which compare similarities"
            )
        if self.dims is not None and max(self.dims) > model:
            raise ValueError(f"loss.dims must be <= {model}, the embedding size, got {list(self.dims)}")

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        counts = 1.0 + batch.labels.mask.sum(1)  # The query counts as well as its candidates.
        ones = torch.ones_like(counts)
        further = {"similarity": self.similarity_weight, "triplet": self.triplet_weight}
        return {"loss": counts, **{name: ones for name, weight in further.items() if weight}}

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        if batch.teacher is None or batch.queries is None:
            raise ValueError("VectorDistillLoss needs embeddings of each text, the teacher's as Batch.teacher")
        asked = torch.arange(len(batch)) if queries is None else queries
        vectors = one_each(embeddings, type(self).__name__)
        with torch.autocast(vectors.device.type, enabled=False):
            weights = {name: taken(values, asked) for name, values in self.in_batch_weights(batch).items()}
            losses = self._distances(vectors, batch, asked)
            terms = {
                name: Term(value.expand(len(asked)), weights[name].to(vectors), scale)
                for name, (value, scale) in self._between_texts(vectors, batch).items()
            }
        metrics = {"loss/distance": losses.detach()}
        return LossOutput(self.weight * losses, weights["loss"].to(losses), metrics, terms)

    def _distances(self, vectors: Tensor, batch: Batch, asked: Tensor) -> Tensor:
        """[b] means over the query and its candidates."""
        if not self.weight:
            return vectors.new_zeros(len(asked))
        known = batch.on_cpu
        assert known.queries is not None and batch.teacher is not None
        mask, queries = known.labels.mask[asked], known.queries[asked]
        query, column = mask.nonzero(as_tuple=True)
        candidates = known.candidates[asked][query, column]
        of_queries = self._distance(taken(vectors, queries), taken(batch.teacher.queries, queries))
        of_candidates = self._distance(taken(vectors, candidates), taken(batch.teacher.candidates, candidates))
        sums = of_queries.index_add(0, query.to(vectors.device, non_blocking=True), of_candidates)
        return sums / (1 + mask.sum(1)).to(vectors.device, non_blocking=True)

    def _distance(self, vectors: Tensor, teacher: Tensor) -> Tensor:
        teacher = teacher.to(vectors)
        if self.distance == "mse":
            return (vectors - teacher).square().mean(1)
        if self.distance == "l2":
            return torch.linalg.vector_norm(vectors - teacher, dim=1)
        return 1 - (normalize(vectors, dim=1) * normalize(teacher, dim=1)).sum(1)

    def _between_texts(self, vectors: Tensor, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Returns value and weight of the similarity terms of the whole update, on every rank."""
        if not self.similarity_weight and not self.triplet_weight:
            return {}
        students, wanted = _texts(vectors, batch)
        sizes = self.dims or (vectors.shape[1],)
        cut = [similarities(students[:, :size]) for size in sizes]
        terms = {}
        if self.similarity_weight:
            values = [(found - wanted).square().mean() for found in cut]
            terms["similarity"] = torch.stack(values).mean(), self.similarity_weight
        if self.triplet_weight:
            values = [relative_similarity(found, wanted, self.triplet_margin) for found in cut]
            terms["triplet"] = torch.stack(values).mean(), self.triplet_weight
        return terms


def _texts(vectors: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings [T, D] of the distinct queries and passages, and the teacher's similarities [T, T]."""
    known = batch.on_cpu
    assert known.queries is not None and batch.teacher is not None
    queries, candidates = known.queries.unique(), known.candidates[known.labels.mask].unique()
    students = torch.cat([taken(vectors, queries), taken(vectors, candidates)])
    teacher = torch.cat([taken(batch.teacher.queries, queries), taken(batch.teacher.candidates, candidates)])
    return students, similarities(at_least_float32(teacher)).to(vectors)


def similarities(vectors: Tensor) -> Tensor:
    """Cosines [T, T] of all texts with each other."""
    unit = normalize(vectors, dim=1)
    return unit @ unit.T


def relative_similarity(found: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """Mean over pairs of pairs of max(0, margin - (found of the pair of larger wanted - found of the other)).

    found, wanted: similarities [T, T]. In ties of wanted, the first counts as smaller, as in RAG-Retrieval.
    Raises ValueError for more than MOST_TEXTS texts, because of memory.
    """
    count = len(found)
    if count > MOST_TEXTS:
        raise ValueError(
            f"triplet_weight compares all pairs of pairs of texts, and this update has {count} texts, more than "
            f"{MOST_TEXTS}; lower trainer.batch_size, or set loss.triplet_weight=0"
        )
    above = torch.triu_indices(count, count, 1, device=found.device).unbind()
    student, teacher = found[above], wanted[above]  # [pairs]
    slopes, active = _active_pairs(student.detach(), teacher, margin)
    # The term is piecewise linear: the slopes give value and gradient without storing the pairs of pairs.
    return ((slopes * student).sum() + margin * active) / max(1, len(student) * (len(student) - 1) // 2)


def _active_pairs(student: Tensor, teacher: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Slope [pairs] of the sum of positive terms with respect to each similarity, and the number of those terms."""
    slopes, active = torch.zeros_like(student), student.new_zeros(())
    for first in range(len(student) - 1):
        sign = torch.where(teacher[first + 1 :] < teacher[first], 1.0, -1.0).to(student)
        counted = torch.where(sign * (student[first + 1 :] - student[first]) + margin > 0, sign, 0.0)
        slopes[first + 1 :] += counted
        slopes[first] -= counted.sum()
        active = active + (counted != 0).sum()
    return slopes, active
