"""Models with several vectors a text: in-batch losses, the gradient cache, encoding and scores by one interface."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rankpo.data.loaders.ranking import ContrastiveDataLoader
from rankpo.data.table import open_table
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.triplet import TripletLoss
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.vectors import GivesVectors, encode_table
from rankpo.trainers import in_batch
from rankpo.types import Example, Vectors
from tests.data.test_text_store import Fixed
from tests.models.families import backbone

EXAMPLES = [
    Example("soil", ("a field of wheat", "x", "rain"), (1.0, 0.0, 0.0), "a"),
    Example("plough", ("a plough in the field", "soil"), (1.0, 0.0), "b"),
    Example("what rain does", ("rain", "dust", "a field of wheat"), (1.0, 0.0, 0.0), "c"),
]


class TokenModel(GivesVectors):
    """A vector for every token, compared by the sum over query tokens of the largest inner product."""

    kind = "token"

    @property
    def dim(self):
        return 24

    def counts(self, sequences):
        return sequences.lengths

    def forward(self, sequences):
        rows, hidden = zip(
            *[(rows, hidden.split(n.tolist())) for rows, hidden, n in self.hidden_states(sequences)], strict=True
        )
        parts = [part for several in hidden for part in several]
        order = torch.argsort(torch.cat(rows)).tolist()
        return torch.nn.functional.normalize(torch.cat([parts[place] for place in order]), dim=1)

    def similarity(self, queries, candidates):
        left, right = queries.rows.split(queries.counts.tolist()), candidates.rows.split(candidates.counts.tolist())
        return torch.stack([torch.stack([(q @ c.T).max(1).values.sum() for c in right]) for q in left])

    def paired(self, queries, candidates):
        left, right = queries.rows.split(queries.counts.tolist()), candidates.rows.split(candidates.counts.tolist())
        return torch.stack([(q @ c.T).max(1).values.sum() for q, c in zip(left, right, strict=True)])


@pytest.fixture
def model():
    settings = EmbeddingSettings(query_max_length=12, passage_max_length=30)
    return TokenModel(backbone("bert"), EmbeddingInputs(byte_tokenizer(), settings)).eval()


@pytest.fixture
def table(model, tmp_path):
    return open_table(tmp_path, [Fixed(EXAMPLES)], model.inputs.pieces(), lambda message: None)


def naive(model, query, document):
    """The score of two texts, each encoded alone."""
    left, right = (model(model.inputs.sequences_of([text], role)) for text, role in ((query, "query"), (document, "c")))
    return (left @ right.T).max(1).values.sum()


def test_vectors_of_chosen_texts():
    vectors = Vectors(torch.arange(6.0)[:, None], torch.tensor([2, 1, 3]))
    inside = vectors.between(1, 3)
    assert torch.equal(inside.rows, vectors.select(torch.tensor([1, 2])).rows) and len(inside) == 2
    assert inside.rows.untyped_storage().data_ptr() == vectors.rows.untyped_storage().data_ptr()
    chosen = vectors.select(torch.tensor([2, 0, 2]))
    assert chosen.rows[:, 0].tolist() == [3, 4, 5, 0, 1, 3, 4, 5] and chosen.counts.tolist() == [3, 2, 3]
    assert vectors.select(torch.tensor([], dtype=torch.int64)).rows.shape == (0, 1)
    alike = Vectors(torch.arange(3.0)[:, None], torch.ones(3, dtype=torch.int64))
    assert alike.single and alike.select(torch.tensor([2, 0])).rows[:, 0].tolist() == [2, 0]


def test_scores_of_a_table_and_of_a_batch_are_those_of_texts_alone(model, table):
    expected = [naive(model, example.query, text) for example in EXAMPLES for text in example.candidates]
    assert_close(torch.from_numpy(model.slot_scores(table)), torch.stack(expected), atol=1e-5, rtol=0)
    loader = ContrastiveDataLoader(table=table, batch_size=3, seed=1, shuffle=False, num_negatives=1)
    groups = loader.groups(0)
    batch = model.inputs.collate(table, groups)
    scores = model.score(model(batch.sequences), batch)
    of_slot = dict(enumerate(expected))
    for row, group in zip(scores, groups, strict=True):
        assert_close(row, torch.stack([of_slot[slot] for slot in group.slots.tolist()]), atol=1e-5, rtol=0)


def test_rows_of_a_table_are_encoded_in_the_order_that_is_asked_for(model, table):
    rows = np.unique(table.candidates)[::-1].copy()
    found = encode_table(model, table, rows, "candidate")
    alone = [model(model.inputs.sequences(table, [model.inputs.key(row, "candidate")])) for row in rows]
    assert found.counts.tolist() == [len(part) for part in alone]
    assert_close(found.rows, torch.cat(alone), atol=1e-5, rtol=0)


class OneProcess:
    """The backward pass of one process, as a strategy."""

    def backward(self, value):
        value.backward()

    def no_sync(self):
        return nullcontext()


def gradients(model, table, loss, max_tokens):
    loader = ContrastiveDataLoader(table=table, batch_size=3, seed=1, shuffle=False, num_negatives=1)
    update = in_batch.prepare(loss, model.inputs, table, loader.groups(0), max_tokens)
    update = replace(update, counts=model.counts(update.batch.sequences), similarity=model.similarity)
    model.zero_grad()
    _, value = in_batch.backward(loss, model, update, OneProcess())
    return (
        len(update.parts),
        float(value),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def test_the_gradient_cache_gives_the_gradient_of_the_whole(model, table):
    loss = ContrastiveLoss(temperature=0.5, symmetric=True, query_query=True)
    one, value, whole = gradients(model, table, loss, 10_000)
    several, cut_value, parts = gradients(model, table, loss, 30)
    assert one == 1 and several == 3
    assert cut_value == pytest.approx(value, abs=1e-6)
    assert whole.keys() == parts.keys() and len(whole) > 10
    for name, expected in whole.items():
        assert_close(parts[name], expected, atol=1e-6, rtol=1e-4)


def test_the_loss_is_that_of_the_texts_scores(model, table):
    """InfoNCE by hand over the distinct candidates that the update shows; no known positive is another's negative."""
    loader = ContrastiveDataLoader(table=table, batch_size=3, seed=1, shuffle=False, num_negatives=1)
    groups = loader.groups(0)
    texts = {int(row): text for e, x in enumerate(EXAMPLES) for row, text in zip(table.candidates[table.slots(e)], x.candidates, strict=True)}  # fmt: skip
    pool = {int(row) for group in groups for row in group.candidates}
    losses = []
    for group, example in zip(groups, EXAMPLES, strict=True):
        scores = torch.stack([naive(model, example.query, texts[row]) for row in (int(group.candidates[0]), *sorted(pool - {int(group.candidates[0])}))])  # fmt: skip
        losses.append(-(scores / 0.5).log_softmax(0)[0])
    _, value, _ = gradients(model, table, ContrastiveLoss(temperature=0.5), 10_000)
    assert value == pytest.approx(float(torch.stack(losses).mean().detach()), abs=1e-5)


def test_a_loss_on_distances_of_one_vector_says_so(model, table):
    with pytest.raises(ValueError, match="TripletLoss needs one vector per text, but this model has several"):
        gradients(model, table, TripletLoss(), 10_000)
