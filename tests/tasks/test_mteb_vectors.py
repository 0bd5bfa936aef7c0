"""The encoder that task=mteb hands to the package mteb: several vectors per text as arrays, and the scores of every kind."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rankpo.tasks.mteb import Mteb
from rankpo.tasks.work import mteb as work
from rankpo.types import Vectors
from tests.runs import trainer_of

QUERIES, TEXTS = ["rain", "a longer query, with a comma"], ["rain falls", "soil, and mud", "x"]
KINDS = {
    "embedding": (),
    "late_interaction": ("model.query_expansion=fixed", "model.query_max_length=40", "model.skip=punctuation"),
    "sparse": ("model.query_encoder=static",),
    "hybrid": (),
}


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setattr("rankpo.tasks.mteb.find_spec", lambda name: True)
    described = SimpleNamespace(ModelMeta=SimpleNamespace(create_empty=lambda keys: keys))
    monkeypatch.setattr(work, "import_module", lambda name: described)
    return Mteb(tasks=("Own", "Other"), prompts={"Own": "find: "})


def encoded(encoder, texts, name, role):
    halves = [{"text": texts[:1]}, {"text": texts[1:]}]  # as a loader of batches gives them
    return encoder.encode(halves, task_metadata=SimpleNamespace(name=name), prompt_type=SimpleNamespace(value=role))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_model(tmp_path, task, kind):
    model = trainer_of(
        *("model=tiny_bert", f"kind={kind}", "model.random.num_hidden_layers=1", "model.query_prompt='q: '", *KINDS[kind]),
        *("loss=rankpo", "datasets=[toy_pairs]", f"cache_dir={tmp_path}"),
    ).policy  # fmt: skip
    encoder = work.Encoder(model, task)
    for name, prompt in (("Other", None), ("Own", "find: ")):
        queries, documents = encoded(encoder, QUERIES, name, "query"), encoded(encoder, TEXTS, name, "document")
        assert len(queries) == 2 and len(documents) == 3
        inputs = model.inputs
        if prompt is not None:
            inputs = type(inputs)(inputs.tokenizer, replace(inputs.settings, query_prompt=prompt))
        sequences = inputs.sequences_of(QUERIES, "query"), inputs.sequences_of(TEXTS, "candidate")
        with torch.no_grad():
            left, right = (Vectors(model(each), model.counts(each)) for each in sequences)
            expected = model.similarity(left, right)
        assert_close(encoder.similarity(queries, documents), expected, rtol=1e-5, atol=1e-5)
        assert_close(encoder.similarity(queries, documents[1:]), expected[:, 1:], rtol=1e-5, atol=1e-5)
        assert_close(encoder.similarity_pairwise(queries, documents[:2]), expected.diagonal(), rtol=1e-5, atol=1e-5)


def test_padding_is_no_vector():
    """A padding of zeros would be the best match of a vector with negative products only."""
    vectors = Vectors(torch.tensor([[-1.0], [2], [0]]), torch.tensor([1, 2]))
    again = work.unpadded(work.padded(vectors))
    assert torch.equal(again.rows, vectors.rows) and again.counts.tolist() == [1, 2]
    assert work.unpadded(work.padded(vectors)[1]).counts.tolist() == [2]
