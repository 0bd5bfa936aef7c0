"""Sampling of negatives from a query's filtered candidates: by order, at random, by score, or over clusters."""

from __future__ import annotations

import numpy as np

from rankpo.data.random_keys import random_keys, text_key


def uniforms(count: int, seed: int, query_id: str) -> np.ndarray:
    """[count] random numbers in (0, 1) that depend only on seed and query."""
    keys = random_keys(count, seed, text_key(query_id))
    return ((keys >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53


def draw(log_weights: np.ndarray, count: int, uniform: np.ndarray) -> np.ndarray:
    """Returns indices of `count` draws without replacement with weights exp(log_weights), in ascending order.

    The largest values of log w + Gumbel noise are such draws: Kool et al., https://arxiv.org/abs/1903.06059
    section 2.3; Efraimidis and Spirakis 2006. Weights stay in log space: λ^k underflows long before k log λ does.
    """
    noisy = log_weights - np.log(-np.log(uniform))
    return np.sort(np.argsort(-noisy, kind="stable")[:count])


def cluster_labels(embeddings: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """[n] labels of k-means over one query's survivors; at most as many clusters as distinct vectors."""
    from sklearn.cluster import KMeans

    different = len(np.unique(embeddings, axis=0))
    if different <= 1:
        return np.zeros(len(embeddings), dtype=np.int64)
    means = KMeans(n_clusters=min(num_clusters, different), n_init=1, random_state=seed % 2**32)
    return means.fit_predict(embeddings).astype(np.int64)


def cluster_log_weights(labels: np.ndarray, decay: float) -> np.ndarray:
    """[n] log λ^k, where k is the number of members of the same cluster at better ranks.

    RankPO's sampling, https://arxiv.org/abs/2503.10723 and its code. λ = 1 is uniform; a small λ favours the best
    of each cluster.
    """
    met: dict[int, int] = {}
    order = np.empty(len(labels))
    for place, label in enumerate(labels.tolist()):
        order[place] = met.get(label, 0)
        met[label] = met.get(label, 0) + 1
    return order * np.log(decay)


def random_rows(count: int, num_rows: int, seed: int, query_id: str) -> np.ndarray:
    """Returns up to `count` distinct row numbers below `num_rows`, in a random order from seed and query."""
    count = min(count, num_rows)
    drawn, size = np.empty(0, dtype=np.int64), 0
    while len(drawn) < count:
        # A longer draw with the same seed begins with the numbers of the shorter one.
        size = max(2 * size, 2 * count + 16)
        stream = (random_keys(size, seed, text_key(query_id), 1) % np.uint64(num_rows)).astype(np.int64)
        drawn = stream[np.sort(np.unique(stream, return_index=True)[1])]
    return drawn[:count]
