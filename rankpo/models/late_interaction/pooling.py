"""Pooling of token vectors: fewer vectors for each text of an index (https://arxiv.org/abs/2409.14683).

Ward's method clusters the vectors of one text by cosine distance, and the normalised mean of each cluster replaces its
vectors. The first vector of a text ([CLS]) is not pooled, since it represents the whole text.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch.nn.functional import normalize

from rankpo.types import Vectors

PROTECTED = 1  # Vectors at the beginning of a text that are not pooled.


def pool_vectors(vectors: Vectors, factor: float) -> Vectors:
    """Returns about 1/factor as many vectors for each text, with length 1. Raises ValueError for a factor below 1."""
    if factor < 1:
        raise ValueError(f"pool_factor must be >= 1, got {factor}")
    parts = [_pooled(rows, factor) for rows in vectors.rows.split(vectors.counts.tolist())]
    counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    return Vectors(normalize(torch.cat(parts), dim=1) if parts else vectors.rows, counts)


def _pooled(rows: torch.Tensor, factor: float) -> torch.Tensor:
    first, rest = rows[:PROTECTED], rows[PROTECTED:]
    clusters = max(int(len(rest) // factor), 1)
    if clusters >= len(rest):
        return rows
    distances = (1 - rest @ rest.T).clamp(0, 2).double().numpy()
    tree = linkage(squareform(distances, checks=False), method="ward")
    labels = np.unique(fcluster(tree, t=clusters, criterion="maxclust"), return_inverse=True)[1]
    of_cluster = torch.from_numpy(labels)
    sums = torch.zeros(int(of_cluster.max()) + 1, rows.shape[1]).index_add_(0, of_cluster, rest)
    return torch.cat([first, sums / torch.bincount(of_cluster)[:, None]])
