"""The fit of a prior: recovers a known utility, is the minimum of its objective, and leaves nothing to the scale of features."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from rankpo.models.embedding.prior_fit import JudgedPairs, fit_prior

RIDGES = (1e-4, 1e-2, 1.0)


def world(num_passages=200, num_pairs=1500, slope=3.0, noise=0.0):
    """Features, and pairs whose log-odds are slope·gap + t_w - t_l with t = 2·f_0 - f_1; f_2 is a constant."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_passages, 5, generator=generator, dtype=torch.float64)
    features[:, 1] *= 100  # The fit standardises features, so their scale does not change the result.
    features[:, 2] = 7
    utility = 2 * features[:, 0] - features[:, 1] / 100
    left, right = torch.randint(num_passages, (2, num_pairs), generator=generator)
    gaps = torch.randn(num_pairs, generator=generator, dtype=torch.float64)
    logits = slope * gaps + utility[left] - utility[right] + noise * torch.randn(num_pairs, generator=generator)
    swap = logits < 0
    chosen, rejected = torch.where(swap, right, left), torch.where(swap, left, right)
    return features, JudgedPairs(chosen, rejected, logits.abs().sigmoid(), torch.where(swap, -gaps, gaps))


def test_a_linear_utility_is_recovered():
    features, pairs = world()
    fitted = fit_prior(features, pairs, RIDGES, folds=4, seed=0)
    assert fitted.ridge == 1e-4
    assert fitted.slope == pytest.approx(3, abs=0.1)
    expected = torch.tensor([2, -0.01, 0, 0, 0], dtype=torch.float64)
    assert_close(fitted.weights, expected, rtol=0, atol=0.05)
    assert fitted.held_out_accuracy > 0.98 > fitted.held_out_prior > 0.7


def test_it_is_the_minimum_of_its_objective():
    """No small step of slope or weights lowers mean cross-entropy + ridge/2·|standardised weights|²."""
    features, pairs = world(noise=1.0)
    fitted = fit_prior(features, pairs, (0.03,), folds=4, seed=0)
    scale = torch.where(features.std(0) > 1e-9, features.std(0), 1.0)

    def objective(slope, weights):
        values = features @ weights
        logits = slope * pairs.gaps + values[pairs.chosen] - values[pairs.rejected]
        loss = binary_cross_entropy_with_logits(logits, pairs.confidence)
        return float(loss + 0.5 * 0.03 * (weights * scale).square().sum())

    best = objective(fitted.slope, fitted.weights)
    for sign in (-1e-3, 1e-3):
        assert objective(fitted.slope + sign, fitted.weights) > best
        for place in (0, 1, 3, 4):
            step = torch.zeros(5, dtype=torch.float64)
            step[place] = sign / scale[place]
            assert objective(fitted.slope, fitted.weights + step) > best


def test_noise_asks_for_a_larger_ridge():
    generator = torch.Generator().manual_seed(1)
    features, pairs = world(num_passages=60, num_pairs=40)
    noisy = torch.cat([features, torch.randn(60, 200, generator=generator, dtype=torch.float64)], dim=1)
    assert fit_prior(noisy, pairs, RIDGES, folds=3, seed=0).ridge > 1e-4


def test_what_cannot_be_fitted_is_an_error():
    features, pairs = world(num_passages=5, num_pairs=8)
    with pytest.raises(ValueError, match="passages with different features"):
        fit_prior(torch.ones_like(features), pairs, RIDGES, folds=2, seed=0)
    with pytest.raises(ValueError, match=r"1 pairs are too few for 2 folds of passages; lower task\.folds"):
        fit_prior(features, pairs.select(torch.tensor([0])), RIDGES, folds=2, seed=0)
