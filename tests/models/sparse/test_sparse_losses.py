"""Losses with regularisation equal sentence-transformers' SpladeLoss on the same batch: value and all gradients."""

import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.distillation import KLDistillLoss, MarginMSELoss
from rankpo.losses.reduction import sums, total
from rankpo.losses.sparsity import Sparsity
from rankpo.models.saving import save
from rankpo.models.sparse.saving import SparseFolder
from rankpo.trainers.regularisation import Regularisation
from rankpo.types import Batch, Labels
from tests.models.sparse.builders import sparse_model

losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
QUERIES = ["what rain does", "soil", "ploughing a field"]
COLUMNS = [["rain falls", "dark soil", "a plough"], ["dust", "wheat", "x y z"], ["a car", "rust", "a tin of paint"]]
TEACHER = torch.tensor([[3.0, 1, 0.5], [2, -1, 0], [1, 0.25, -2]])
WEIGHTS = {"query_weight": 0.03, "document_weight": 0.02, "warmup": 0}
THEIRS = {
    "contrastive": lambda model: losses.SparseMultipleNegativesRankingLoss(model, scale=0.5),
    "margin_mse": lambda model: losses.SparseMarginMSELoss(model),
    "kl_distill": lambda model: losses.SparseDistillKLDivLoss(model, temperature=2.0),
}
OURS = {
    "contrastive": ContrastiveLoss(temperature=2.0),
    "margin_mse": MarginMSELoss(),
    "kl_distill": KLDistillLoss(temperature=2.0, teacher_temperature=2.0, scale_by_t2=True),
}


def our_batch(inputs):
    texts = [*QUERIES, *(text for column in COLUMNS for text in column)]
    count = len(QUERIES)
    labels = Labels(
        relevance=torch.tensor([[1.0, 0, 0]] * count),
        mask=torch.ones(count, 3, dtype=torch.bool),
        confidence=torch.ones(count),
        teacher=TEACHER,
    )
    candidates = torch.arange(count, 4 * count).reshape(3, count).T
    sequences = inputs.sequences_of(texts, "candidate")
    return Batch(sequences, torch.arange(count), candidates, labels, tuple("abc"))


@pytest.mark.parametrize("threshold", [None, 75])
@pytest.mark.parametrize("name", OURS)
def test_equal_to_splade_loss_with_gradients(tmp_path, name, threshold):
    from sentence_transformers import SparseEncoder

    save(tmp_path / "start", sparse_model(query_max_length=20), SparseFolder(), {})
    theirs, ours = SparseEncoder(str(tmp_path / "start"), device="cpu"), rankpo.load(tmp_path / "start", "cpu")
    their_loss = losses.SpladeLoss(
        theirs,
        THEIRS[name](theirs),
        document_regularizer_weight=WEIGHTS["document_weight"],
        query_regularizer_weight=WEIGHTS["query_weight"],
        document_regularizer_threshold=threshold,
    )
    features = [theirs.preprocess(column) for column in (QUERIES, *COLUMNS)]
    expected = sum(their_loss(features, None if name == "contrastive" else TEACHER).values())
    expected.backward()

    batch, loss = our_batch(ours.inputs), OURS[name]
    sparsity = Sparsity(**WEIGHTS, document_threshold=threshold)
    rows = ours(batch.sequences)
    if name == "contrastive":
        output, weights = loss.in_batch(rows, batch, None, ours.similarity), loss.in_batch_weights(batch)
    else:
        output, weights = loss(ours.score(rows, batch), batch.labels), loss.weights(batch.labels)
    output = Regularisation(sparsity, factor=1.0).added(output, rows, batch)
    value = total(output, {**sums(weights), **sparsity.denominators(3, 9)})
    value.backward()
    assert_close(value, expected.detach(), rtol=1e-5, atol=1e-5)
    gradients = {name: p.grad for name, p in theirs[0].model.named_parameters()}
    for parameter, tensor in ours.base.named_parameters():
        wanted = gradients[parameter]
        assert (tensor.grad - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6, parameter
