"""Losses and gradients of late interaction beside sentence-transformers' own, on the same batch."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rankpo.data.loaders.ranking import ContrastiveDataLoader
from rankpo.data.table import open_table
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.distillation import KLDistillLoss, MarginMSELoss
from rankpo.losses.reduction import sums, total
from rankpo.models.late_interaction.config import LateInteractionKind
from rankpo.models.load import ignore
from rankpo.trainers import in_batch
from rankpo.types import Batch, Example, Labels
from tests.data.test_text_store import Fixed
from tests.models.test_vectors import OneProcess

st = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.multi_vector_encoder")
from sentence_transformers.multi_vector_encoder import losses as theirs  # noqa: E402
from sentence_transformers.multi_vector_encoder.scoring import (  # noqa: E402
    mean_colbert_kd_scores,
    mean_colbert_scores,
    mean_colbert_scores_pairwise,
)

from tests.models.late_interaction.test_checkpoints import folder_of  # noqa: E402

QUERIES = ["soil", "plough, deep?", "what rain does"]
COLUMNS = [
    ["a field of wheat.", "a plough in the field", "rain falls on the soil"],
    ["x", "horses, and mules!", "dust"],
    ["wheat and rye", "an old car", "a wet summer, then a dry autumn"],
]
TEACHER = torch.tensor([[3.0, 1.0, 0.5], [2.5, -1.0, 0.0], [1.0, 0.75, -2.0]])
SCALE = 1.5
DIVIDED = {"fixed": False, "skipped": False, "divided": True}


@pytest.fixture(params=["fixed", pytest.param("skipped", marks=pytest.mark.slow), "divided"])
def pair(request, tmp_path):
    """The same folder in both libraries, and whether scores are divided by the query's tokens."""
    folder = folder_of(tmp_path, request.param)
    kind = LateInteractionKind(load_from=str(folder))
    ours = kind.build(kind.open_inputs(ignore), ignore).eval()
    return ours, st.MultiVectorEncoder(str(folder), device="cpu").eval(), DIVIDED[request.param]


def features(model):
    asked = model.preprocess(QUERIES, prompt=model.prompts.get("query"), task="query")
    given = [model.preprocess(texts, prompt=model.prompts.get("document"), task="document") for texts in COLUMNS]
    return [{**item, "task": task} for item, task in zip([asked, *given], ["query"] + ["document"] * 3, strict=True)]


def their_gradients(model):
    body = {name: p.grad for name, p in model[0].model.named_parameters() if p.grad is not None}
    return {**body, "projection": model[1].linear.weight.grad}


def our_gradients(model):
    body = {name: p.grad for name, p in model.base.named_parameters() if p.grad is not None}
    return {**body, "projection": model.layers[0].linear.weight.grad}


def agree(ours, reference, loss, expected):
    assert_close(torch.tensor(float(loss)), torch.tensor(float(expected)), atol=1e-5, rtol=1e-5)
    mine, other = our_gradients(ours), their_gradients(reference)
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    shared = sorted(mine.keys() & other.keys())
    assert len(shared) > 10 and "projection" in shared and largest > 1e-3
    for name in shared:
        assert_close(mine[name], other[name], atol=1e-4 * largest, rtol=1e-4)


def update_of(ours, tmp_path, max_tokens):
    examples = [
        Example(query, tuple(column[row] for column in COLUMNS), (1.0, 0.0, 0.0), str(row))
        for row, query in enumerate(QUERIES)
    ]
    table = open_table(tmp_path, [Fixed(examples)], ours.inputs.pieces(), ignore)
    loader = ContrastiveDataLoader(table=table, batch_size=3, seed=1, shuffle=False, num_negatives=2)
    loss = ContrastiveLoss(temperature=1 / SCALE)
    update = in_batch.prepare(loss, ours.inputs, table, loader.groups(0), max_tokens)
    counts = ours.counts(update.batch.sequences)
    return loss, replace(update, counts=counts, similarity=ours.similarity)


@pytest.mark.parametrize("form", ["plain", "cached"])
def test_in_batch_negatives(pair, tmp_path, form):
    ours, reference, divided = pair
    loss, update = update_of(ours, tmp_path, 100_000 if form == "plain" else 40)
    assert (len(update.parts) > 1) == (form == "cached")
    _, found = in_batch.backward(loss, ours, update, OneProcess())
    value = float(found)
    similarity = mean_colbert_scores if divided else None
    if form == "plain":
        their = theirs.MultiVectorMultipleNegativesRankingLoss(reference, scale=SCALE, similarity_fct=similarity)
    else:
        their = theirs.CachedMultiVectorMultipleNegativesRankingLoss(
            reference, scale=SCALE, similarity_fct=similarity, mini_batch_size=2
        )
    expected = their(features(reference), None)
    expected.backward()
    agree(ours, reference, value, expected.detach())


def scored(ours):
    """Scores [3, 3] of each query's own candidates, and their labels with the teacher's scores."""
    rows = [text for column in zip(*COLUMNS, strict=True) for text in column]
    asked, given = ours.inputs.sequences_of(QUERIES, "query"), ours.inputs.sequences_of(rows, "candidate")
    queries = torch.arange(3)
    labels = Labels(
        relevance=torch.tensor([[1.0, 0.0, 0.0]] * 3),
        mask=torch.ones(3, 3, dtype=torch.bool),
        confidence=torch.ones(3),
        teacher=TEACHER,
    )
    sequences = joined(asked, given)
    batch = Batch(sequences, queries, 3 + torch.arange(9).view(3, 3), labels, ("a", "b", "c"))
    return ours.score(ours(sequences), batch), batch


def joined(first, second):
    """The sequences of both, one after another."""

    def cat(name, missing):
        parts = [getattr(item, name) for item in (first, second)]
        if all(part is None for part in parts):
            return None
        return torch.cat(
            [missing(item) if part is None else part for item, part in zip((first, second), parts, strict=True)]
        )

    return replace(
        first,
        input_ids=torch.cat([first.input_ids, second.input_ids]),
        lengths=torch.cat([first.lengths, second.lengths]),
        kept=cat("kept", lambda item: torch.ones(item.num_tokens, dtype=torch.bool)),
        attended=cat("attended", lambda item: item.lengths),
    )


@pytest.mark.parametrize("loss", ["kl_distill", "margin_mse"])
def test_distillation(pair, loss):
    ours, reference, divided = pair
    scores, batch = scored(ours)
    if loss == "kl_distill":
        mine = KLDistillLoss(temperature=2.0, teacher_temperature=2.0, scale_by_t2=True)
        their = theirs.MultiVectorDistillKLDivLoss(
            reference, student_temperature=2.0, teacher_temperature=2.0,
            **({"similarity_fct": mean_colbert_kd_scores} if divided else {}),
        )  # fmt: skip
    else:
        mine = MarginMSELoss(temperature=1.0)
        their = theirs.MultiVectorMarginMSELoss(
            reference, **({"similarity_fct": mean_colbert_scores_pairwise} if divided else {})
        )
    output = mine(scores, batch.labels)
    value = total(output, sums(mine.weights(batch.labels)))
    value.backward()
    expected = their(features(reference), TEACHER)
    expected.backward()
    agree(ours, reference, value.detach(), expected.detach())
