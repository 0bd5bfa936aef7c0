"""Each loss on lists for one unpadded list, as plain loops over pairs and positions: the other side of the tests.

s: scores [n], a tensor. y, t: relevance and teacher scores, lists of floats.
"""

from __future__ import annotations

from math import exp, log, log2

import torch


def bce(x):
    return -torch.log(torch.sigmoid(x))


def pointwise_bce(s, y, t):
    return sum(2.0 * a * bce(x) + (1 - a) * bce(-x) for x, a in zip(s, y, strict=True)) / len(y)


def pointwise_mse(s, y, t):
    return sum((1 / (1 + torch.exp(-x)) - a) ** 2 for x, a in zip(s, y, strict=True)) / len(y)


def pairs_of(y):
    return [(i, j) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j]]


def rank_of(y, i):
    places = [k + 1 for k, value in enumerate(sorted(y, reverse=True)) if value == y[i]]
    return sum(places) / len(places)


def weighted(s, pairs, weight):
    return sum(weight(i, j) * torch.log1p(torch.exp(s[j] - s[i])) for i, j in pairs) / len(pairs)


def ranknet(s, y, t):
    return weighted(s, pairs_of(y), lambda i, j: 1.0)


def ranknet_by_rank(s, y, t):
    return weighted(s, pairs_of(y), lambda i, j: 1 / (rank_of(y, i) + rank_of(y, j)))


def ranknet_by_difference(s, y, t):
    return weighted(s, pairs_of(y), lambda i, j: y[i] - y[j])


def place_of(s):
    order = sorted(range(len(s)), key=lambda i: -s[i].item())
    return {i: place for place, i in enumerate(order, 1)}


def gains_of(y, k):
    ideal = sum((2**v - 1) / log2(1 + p) for p, v in enumerate(sorted(y, reverse=True)[:k], 1))
    return [(2**v - 1) / ideal for v in y]


def ndcg2pp(s, y, t):
    place, gain = place_of(s), gains_of(y, len(y))

    def weight(i, j):
        d = abs(place[i] - place[j])
        two = abs(1 / log2(1 + d) - 1 / log2(2 + d))
        one = abs(1 / log2(1 + place[i]) - 1 / log2(1 + place[j]))
        return (10 * two + one) * abs(gain[i] - gain[j])

    return weighted(s, pairs_of(y), weight) / log(2)


def lambdarank_at_2(s, y, t):
    place, gain = place_of(s), gains_of(y, 2)
    kept = [(i, j) for i, j in pairs_of(y) if min(place[i], place[j]) <= 2]

    def weight(i, j):
        return abs(1 / log2(1 + place[i]) - 1 / log2(1 + place[j])) * abs(gain[i] - gain[j])

    return weighted(s, kept, weight)


def ndcg1(s, y, t):
    place, gain = place_of(s), gains_of(y, len(y))
    pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if i != j]
    return weighted(s, pairs, lambda i, j: gain[i] / log2(1 + place[i])) / log(2)


def log_shares(s):
    return [x - torch.log(sum(torch.exp(v) for v in s)) for x in s]


def softmax_of(values):
    return [exp(v) / sum(exp(w) for w in values) for v in values]


def listnet(s, y, t):
    wanted = softmax_of([v / 0.5 for v in y])
    return -sum(p * x for p, x in zip(wanted, log_shares(s), strict=True))


def softmax(s, y, t):
    return -sum(v / sum(y) * x for v, x in zip(y, log_shares(s), strict=True))


def choices(s, y):
    order = sorted(range(len(y)), key=lambda i: -y[i])  # stable: ties stay in order
    ranked = [s[i] for i in order]
    return [torch.log(sum(torch.exp(v) for v in ranked[k:])) - ranked[k] for k in range(len(ranked))]


def listmle_mean(s, y, t):
    return sum(choices(s, y)) / len(y)


def plistmle(s, y, t):
    n = len(y)
    weights = [2 ** (n - k) - 1 for k in range(1, n + 1)]
    return sum(w * term for w, term in zip(weights, choices(s, y), strict=True)) / sum(weights)


def plackett_luce(s, y, t):
    return sum(choices(0.8 * s, y)[:2])


def adr_mse(s, y, t):
    value = 0.0
    for i in range(len(y)):
        soft = 1 + sum(1 / (1 + torch.exp(-1.5 * (s[j] - s[i]))) for j in range(len(y)) if j != i)
        value = value + (rank_of(y, i) - soft) ** 2 / log2(1 + rank_of(y, i))
    return value / len(y)


def margin_mse(s, y, t):
    best = y.index(max(y))
    others = [j for j in range(len(y)) if j != best]
    return sum(((s[best] - s[j]) - (t[best] - t[j])) ** 2 for j in others) / len(others)


def margin_mse_all(s, y, t):
    pairs = [(i, j) for i in range(len(y)) for j in range(i)]
    return sum(((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i, j in pairs) / len(pairs)


def kl_distill(s, y, t):
    wanted = softmax_of([v / 2 for v in t])
    return sum(p * (log(p) - x) for p, x in zip(wanted, log_shares(s), strict=True))
