"""Divergences and risk ratios: the five-word table, vocabularies of 1,000 and 50,304, duals, identities, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.risk import (
    RiskMeasure,
    cvar,
    cvar_lower,
    erm,
    kl,
    published_cvar,
    reverse_kl,
    tail_weights,
)
from tests.losses.tables import assert_values

P = tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=float64).log()
PI = tensor([0.5, 0.2, 0.12, 0.15, 0.03], dtype=float64).log()


@pytest.mark.parametrize(
    ("level", "upper", "lower", "published", "split"),
    [
        (1.0, 0.0508484, 0.0508484, 0.0913949, None),
        (0.99, 0.0554576, 0.0462022, 0.0913949, 0.1806523),
        (0.95, 0.0748649, 0.0266391, 0.0913949, 0.1806523),
        (0.9, 0.1015499, 0.0055932, 0.0913949, 0.1806523),
        (0.5, 0.3613047, -0.2596079, 0.1471808, 0.1471808),
        (0.05, 0.5108256, -0.4054651, 0.0255413, 0.1471808),
    ],
)
def test_five_words(level, upper, lower, published, split):
    assert_values(cvar(P, PI, level), upper)
    assert_values(cvar_lower(P, PI, level), lower)
    assert_values(published_cvar(P, PI, level, split=False), published)
    if split is not None:
        assert_values(published_cvar(P, PI, level), split)


def test_five_words_by_hand():
    """At μ = .5: (.05 · .5108256 + .3 · .4054651 + .15 · .2231436)/.5; the third word keeps all of its .15."""
    assert_values(kl(P, PI), 0.0508484)
    assert_values(erm(P, PI, 0.5), 0.0767076)
    assert_values(erm(P, PI, 1.0), 0.1021052)
    assert_values(erm(P, PI, 5.0), 0.2518702)
    weights = tail_weights(P - PI, P.exp(), 0.5)
    assert_close(weights, tensor([0, 0.3, 0.15, 0, 0.05], dtype=float64))
    half = tail_weights(P - PI, P.exp(), 0.4)  # .05 + .3 and a third of the .15
    assert_close(half, tensor([0, 0.3, 0.05, 0, 0.05], dtype=float64))


def test_the_published_split_depends_on_the_order_of_words():
    order = tensor([0, 3, 1, 2, 4])
    assert_values(published_cvar(P[order], PI[order], 0.95), 0.0579234)
    for measure in (kl, lambda p, q: cvar(p, q, 0.95), lambda p, q: erm(p, q, 2.0)):
        assert_close(measure(P[order], PI[order]), measure(P, PI))


def waves(a: float) -> tuple[Tensor, Tensor]:
    k = torch.arange(1000, dtype=float64)
    reference = 3 * torch.sin(k)
    return reference.log_softmax(-1), (reference + a * torch.cos(7 * k + 1)).log_softmax(-1)


@pytest.mark.parametrize(
    ("a", "divergence", "tails", "published", "lower", "entropic"),
    [
        (0.1, 0.0024997, (0.0035093, 0.0077405, 0.0134358, 0.0662571),
         (0.0037365, 0.0076947, 0.0119638, 0.0331219), -0.0027458, (0.0049996, 0.0148187)),
        (0.5, 0.0615700, (0.0666182, 0.0877741, 0.1162503, 0.3803570),
         (0.0671311, 0.0849177, 0.1040513, 0.1899914), 0.0353424, (0.1231652, 0.2999817)),
    ],
)  # fmt: skip
def test_a_thousand_words(a, divergence, tails, published, lower, entropic):
    p, q = waves(a)
    assert_values(kl(p, q), divergence)
    for level, tail, theirs in zip((0.99, 0.95, 0.9, 0.5), tails, published, strict=True):
        assert_values(cvar(p, q, level), tail)
        assert_values(published_cvar(p, q, level, split=False), theirs)
    assert_values(cvar_lower(p, q, 0.95), lower)
    assert_values(torch.stack([erm(p, q, 1.0), erm(p, q, 5.0)]), *entropic)


def test_a_real_vocabulary_in_float32():
    """As it is computed in training; the difference from the table is float32's."""
    draws = np.random.default_rng(0)
    reference = draws.normal(0, 2, 50304)
    policy = reference + draws.normal(0, 0.1, 50304)
    p, q = (torch.from_numpy(x).float().log_softmax(-1) for x in (reference, policy))
    values = [kl(p, q), cvar(p, q, 0.95), published_cvar(p, q, 0.95, split=False), cvar(p, q, 0.5)]
    assert_values(torch.stack(values).double(), 0.0047383, 0.0155256, 0.0154111, 0.0819788, atol=2e-7)


def test_the_split_is_wrong_where_gains_follow_the_order_of_words():
    """As in real vocabularies, which are sorted by frequency."""
    reference = 3 * torch.sin(torch.arange(1000, dtype=float64))
    p = reference.log_softmax(-1)
    q = (reference + torch.linspace(-0.5, 0.5, 1000, dtype=float64)).log_softmax(-1)
    values = [kl(p, q), cvar(p, q, 0.95), published_cvar(p, q, 0.95, split=False), published_cvar(p, q, 0.95)]
    assert_values(torch.stack(values), 0.0413408, 0.0663454, 0.0630485, 0.0512333)


@pytest.mark.parametrize(
    ("level", "upper", "published"),
    [(0.99, 0.006081, 0.004855), (0.95, 0.013582, 0.012953), (0.9, 0.020613, 0.016401), (0.5, 0.073974, 0.036908)],
)
def test_a_sharper_vocabulary(level, upper, published):
    draws = np.random.default_rng(0)
    reference = draws.normal(0, 3, 50304)
    policy = reference + draws.normal(0, 0.1, 50304)
    p, q = (torch.from_numpy(x).log_softmax(-1) for x in (reference, policy))
    values = [kl(p, q), cvar(p, q, level), published_cvar(p, q, level, split=False)]
    assert_values(torch.stack(values), 0.003825, upper, published, atol=1e-6)


def naive_cvar(p: Tensor, q: Tensor, level: float) -> Tensor:
    """Sorted, the last word fractionally."""
    gains = (p - q).detach()
    order = gains.argsort(descending=True)
    mass = p.exp()[order]
    before = mass.cumsum(0) - mass
    kept = (level - before).clamp(min=0).minimum(mass)
    return (kept * (p - q)[order]).sum() / level


@pytest.mark.parametrize("level", [0.05, 0.5, 0.95, 1.0])
def test_cvar_is_the_sorted_one_and_the_dual_one(level):
    p, q = waves(0.5)
    assert_close(cvar(p, q, level), naive_cvar(p, q, level))
    etas = torch.cat([(p - q), tensor([-10.0], dtype=float64)])  # the minimum lies at a value
    duals = etas + ((p - q - etas[:, None]).clamp(min=0) * p.exp()).sum(1) / level
    assert_close(cvar(p, q, level), duals.min(), atol=1e-9, rtol=1e-9)


def test_cvar_identities():
    """KL at μ = 1, never below it, falling in μ; the two tails make up the whole."""
    p, q = waves(0.5)
    levels = [0.01, 0.1, 0.5, 0.9, 0.99, 1.0]
    values = torch.stack([cvar(p, q, level) for level in levels])
    assert (values.diff() <= 1e-12).all() and (values >= kl(p, q) - 1e-12).all()
    assert_close(values[-1], kl(p, q))
    for level in levels[:-1]:
        assert_close(level * cvar(p, q, level) + (1 - level) * cvar_lower(p, q, 1 - level), kl(p, q))


def test_words_that_tie_at_the_border_share_it():
    values = tensor([1.0, 0.0, 0.0, -1.0], dtype=float64)
    weights = tail_weights(values, tensor([0.2, 0.3, 0.1, 0.4], dtype=float64), 0.4)
    assert_close(weights, tensor([0.2, 0.15, 0.05, 0.0], dtype=float64))


def test_erm_is_renyis_divergence_and_kl_in_the_limit():
    p, q = waves(0.5)
    order = 3.0  # 1 + μ
    renyi = (p.exp() ** order * q.exp() ** (1 - order)).sum().log() / (order - 1)
    assert_close(erm(p, q, 2.0), renyi)
    assert_close(erm(p, q, 1e-7), kl(p, q), atol=1e-6, rtol=0)


MEASURES = {
    "kl": kl,
    "reverse": reverse_kl,
    "cvar": lambda p, q: cvar(p, q, 0.95),
    "lower": lambda p, q: cvar_lower(p, q, 0.9),
    "erm": lambda p, q: erm(p, q, 5.0),
}


@pytest.mark.parametrize("name", MEASURES)
def test_equal_distributions_have_none_and_no_gradient(name):
    logits = PI.clone().requires_grad_()
    value = MEASURES[name](logits.log_softmax(-1), logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value, logits)
    assert_close(value.detach(), torch.zeros((), dtype=float64))
    assert_close(gradient, torch.zeros(5, dtype=float64))


def test_gradients_at_the_policys_logits():
    """KL: π - p; cvar .95 and erm 5 from the design's table."""
    expected = {
        "kl": PI.exp() - P.exp(),
        "cvar": tensor([0.0789474, -0.1157895, -0.0378947, 0.0973684, -0.0226316], dtype=float64),
        "erm": tensor([0.4627968, -0.4466190, -0.0099308, 0.1462622, -0.1525092], dtype=float64),
    }
    for name, gradient in expected.items():
        logits = PI.clone().requires_grad_()
        (got,) = torch.autograd.grad(MEASURES[name](P, logits.log_softmax(-1)), logits)
        assert_close(got, gradient, atol=5.1e-8, rtol=0)


@pytest.mark.parametrize("name", MEASURES)
def test_gradcheck(name):
    """Several positions at once, none of them at a border of the tail."""
    torch.manual_seed(3)
    reference = torch.randn(3, 7, dtype=float64).log_softmax(-1)
    logits = torch.randn(3, 7, dtype=float64, requires_grad=True)
    assert gradcheck(lambda x: MEASURES[name](reference, x.log_softmax(-1)), logits)


def test_reverse_kl_by_hand():
    assert_close(reverse_kl(P, PI), (PI.exp() * (PI - P)).sum())


def test_words_the_reference_excludes_do_not_count():
    blocked = tensor([-torch.inf], dtype=float64)
    p, q = torch.cat([P, blocked]), torch.cat([PI + np.log(0.9), tensor([0.1], dtype=float64).log()])
    assert_close(kl(p, q), kl(P, PI + np.log(0.9)))
    assert torch.isfinite(cvar(p, q, 0.95)) and torch.isfinite(erm(p, q, 1.0))


def test_underflowing_probabilities_stay_finite():
    """softmax then log would give -inf for the second word."""
    p, q = (tensor(x, dtype=torch.float32).log_softmax(-1) for x in ([0.0, -300.0, -1.0], [0.0, -200.0, -1.5]))
    for measure in MEASURES.values():
        assert torch.isfinite(measure(p, q))


@pytest.mark.parametrize("name", ["kl", "cvar", "erm", "cvar_lower", "published_code"])
def test_measures_by_name(name):
    functions = {
        "kl": kl(P, PI),
        "cvar": cvar(P, PI, 0.9),
        "erm": erm(P, PI, 3.0),
        "cvar_lower": cvar_lower(P, PI, 0.9),
        "published_code": published_cvar(P, PI, 0.9),
    }
    assert_close(RiskMeasure(divergence=name, confidence_level=0.9, erm_mu=3.0)(P, PI), functions[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "var"}, "divergence must be one of cvar, kl, erm, cvar_lower, published_code, got 'var'"),
        ({"confidence_level": 1.5}, r"confidence_level must be in \(0, 1\], got 1.5"),
        ({"erm_mu": 0.0}, "erm_mu must be > 0, got 0.0"),
    ],
)
def test_errors_name_field_and_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        RiskMeasure(**arguments)
