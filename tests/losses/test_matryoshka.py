"""Matryoshka: the golden pair of sizes, weights, terms and metrics, renormalisation, errors."""

from __future__ import annotations

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.matryoshka import Matryoshka, check_matryoshka, matryoshka, sizes_and_weights, truncate
from rankpo.losses.rankpo import RankPOLoss
from rankpo.types import LossOutput
from tests.losses.tables import assert_values, labels

# rows: query, positive, negative
EMBEDDINGS = tensor([[0.6, 0.8, 0, 0], [0.6, 0, 0.8, 0], [0, 0.8, 0, 0.6]], dtype=float64)


def own(embeddings: torch.Tensor) -> LossOutput:
    return ContrastiveLoss(temperature=0.1, negatives="own")(embeddings[:1] @ embeddings[1:].T, labels(1))


def test_golden():
    """Cosines .36, .64 on 4 dimensions and .6, .8 on 2; the mean of 2.8590328 and 2.1269280."""
    output = matryoshka(own, EMBEDDINGS, Matryoshka(dims=(4, 2)))
    assert_values(output.losses, 2.4929804)
    assert_values(output.metrics["loss/dim_4"], 2.8590328)
    assert_values(output.metrics["loss/dim_2"], 2.1269280)
    assert_close(output.metrics["scores/positive"], tensor([0.36], dtype=float64))


def test_weights_are_normalised_and_the_full_size_joins():
    """(1·2.8590328 + 3·2.1269280)/4."""
    assert_values(matryoshka(own, EMBEDDINGS, Matryoshka(dims=(2,), weights=(3.0,))).losses, 2.3099542)
    assert_values(matryoshka(own, EMBEDDINGS, Matryoshka(dims=(2, 4), weights=(6.0, 2.0))).losses, 2.3099542)
    assert sizes_and_weights((2,), (3.0,), 4) == {4: 1.0, 2: 3.0}
    assert list(sizes_and_weights([2, 8, 4], None, 8)) == [8, 4, 2]


def test_no_dims_is_the_loss_itself():
    assert_values(matryoshka(own, EMBEDDINGS, None).losses, 2.8590328)
    assert "loss/dim_4" not in matryoshka(own, EMBEDDINGS, None).metrics


def test_truncate_gives_length_1():
    cut = truncate(tensor([[3.0, 4.0, 12.0], [0.0, 2.0, 9.0]]), 2)
    assert_close(cut, tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_terms_are_averaged_like_the_loss():
    loss = RankPOLoss(beta=1.0, temperature=0.1, reference_free=True, sft_weight=0.3, confidence="weight")
    known = labels(1, confidence=[0.8])

    def preference(embeddings):
        return loss(embeddings[:1] @ embeddings[1:].T, known)

    output = matryoshka(preference, EMBEDDINGS, Matryoshka(dims=(4, 2)))
    term = output.terms["sft"]
    assert_values(output.losses, 2.4929804)  # reference-free at β 1 is the cross-entropy of the golden row
    assert_values(term.losses, 2.4929804)
    assert term.scale == 0.3
    assert_close(term.weights, loss.weights(known)["sft"])
    assert_close(output.weights, loss.weights(known)["loss"])


def test_gradients():
    embeddings = (EMBEDDINGS + 0.1).requires_grad_()
    assert gradcheck(lambda e: matryoshka(own, e, Matryoshka(dims=(4, 2), weights=(1.0, 2.0))).losses, (embeddings,))
    assert not any(
        value.requires_grad for value in matryoshka(own, embeddings, Matryoshka(dims=(4, 2))).metrics.values()
    )


@pytest.mark.parametrize(
    ("dims", "weights", "message"),
    [
        ((), None, r"matryoshka_dims must be distinct integers >= 1, got \[\]"),
        ((4, 4), None, r"matryoshka_dims must be distinct integers >= 1, got \[4, 4\]"),
        ((4, 0), None, r"matryoshka_dims must be distinct integers >= 1, got \[4, 0\]"),
        ((4, 2), (1.0,), r"one weight per dim, got \[1.0\] for matryoshka_dims=\[4, 2\]"),
        ((4, 2), (1.0, 0.0), r"matryoshka_weights must be > 0, got \[1.0, 0.0\]"),
        (None, (1.0,), r"matryoshka_weights=\[1.0\] needs matryoshka_dims"),
    ],
)
def test_errors_name_field_and_value(dims, weights, message):
    with pytest.raises(ValueError, match=message):
        check_matryoshka(dims, weights)


def test_a_size_above_the_embedding_is_an_error():
    with pytest.raises(ValueError, match=r"matryoshka_dims must be <= 4, the embedding size, got \[8, 2\]"):
        matryoshka(own, EMBEDDINGS, Matryoshka(dims=(8, 2)))
