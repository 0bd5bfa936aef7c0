"""Embeddings of a guide or teacher: those that it gives itself, kept for other runs, refused where they cannot serve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from tests.recipes import LATE
from tests.runs import TINY, curve, train, trainer_of

DATA = ("datasets=[toy_contrastive]", "trainer.batch_size=4")
GIST = (*TINY, "loss=gist", "loss.temperature=0.1", *DATA)


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> str:
    """FINAL of another model: wider, with prompts of its own, shorter texts and mean pooling."""
    folder = tmp_path_factory.mktemp("guide")
    own = (
        "model.random.hidden_size=64",
        "model.pooling=mean",
        "model.query_prompt='ask: '",
        "model.passage_max_length=24",
    )
    train(*TINY, *own, *DATA, "loss=contrastive", "trainer.max_steps=1", f"cache_dir={folder}", "exp_name=guide")
    return str(folder / "guide" / "FINAL")


def texts(trainer):
    """Query texts and candidate texts of the first update, with the rows of the batch."""
    examples = [e for e in trainer_examples(trainer)]
    update = trainer.prepare(0)
    queries, candidates = [], []
    for number, group in enumerate(trainer.loader.groups(0)):
        example = next(e for e in examples if e.id == group.id)
        first = trainer.loader.table.offsets[[e.id for e in examples].index(group.id)]
        queries.append((example.query, int(update.batch.queries[number])))
        for column, slot in enumerate(group.slots):
            candidates.append((example.candidates[slot - first], int(update.batch.candidates[number, column])))
    return update.batch, queries, candidates


def trainer_examples(trainer):
    from rankpo.config.compose import compose

    (dataset,) = compose(list(GIST)).datasets
    return list(dataset.examples())


def test_they_are_what_the_guide_gives_itself(tmp_path, guide):
    trainer = trainer_of(*GIST, f"loss.guide={guide}", f"cache_dir={tmp_path}")
    batch, queries, candidates = texts(trainer)
    model = rankpo.load(guide, "cpu")
    for role, pairs, found in (
        ("query", queries, batch.teacher.queries),
        ("passage", candidates, batch.teacher.candidates),
    ):
        expected = torch.from_numpy(model.encode([text for text, _ in pairs], role))
        assert expected.shape[1] == 64 != trainer.policy.dim
        assert_close(found[[row for _, row in pairs]], expected, atol=1e-6, rtol=1e-5)
        assert len({text for text, _ in pairs}) > 3


def test_without_a_folder_they_are_the_start_models(tmp_path):
    trainer = trainer_of(*GIST, f"cache_dir={tmp_path}")
    batch = trainer.prepare(0).batch
    with torch.no_grad():
        vectors = trainer.policy.eval()(batch.sequences)
    assert_close(batch.teacher.queries[batch.queries], vectors[batch.queries])
    rows = batch.candidates[batch.labels.mask]
    assert_close(batch.teacher.candidates[rows], vectors[rows])


def test_they_are_computed_once_for_all_runs_on_the_same_texts(tmp_path, guide, capsys):
    for name in ("a", "b"):
        train(*GIST, f"loss.guide={guide}", "trainer.max_steps=2", f"cache_dir={tmp_path}", f"exp_name={name}")
    said = capsys.readouterr().err
    assert said.count("computing embeddings of ") == 1 and guide in said
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    (folder,) = (path for path in (tmp_path / "teacher").iterdir() if path.is_dir())
    vectors = np.load(folder / "queries.npy")
    vectors[0] += 1
    np.save(folder / "queries.npy", vectors)
    with pytest.raises(
        ConfigError, match=r"is damaged .*; remove it, and the next start computes the embeddings again"
    ):
        trainer_of(*GIST, f"loss.guide={guide}", f"cache_dir={tmp_path}")


def test_a_student_comes_near_its_teacher(tmp_path, guide):
    """By similarities and their order, since the sizes differ; by vectors they are refused."""
    distill = (*TINY, "loss=embed_distill", f"loss.teacher={guide}", *DATA, f"cache_dir={tmp_path}")
    compared = ("loss.weight=0", "loss.similarity_weight=10", "optimizer=adamw", "optimizer.lr=1e-3")
    train(*distill, *compared, "trainer.max_steps=12", "exp_name=student")
    losses = curve(tmp_path / "student")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    with pytest.raises(ConfigError, match="the teacher's embeddings have 64 dimensions and the model's 32; add"):
        trainer_of(*distill)


def test_a_projection_takes_a_student_to_a_teacher_of_another_size(tmp_path, guide):
    """As in Stella and Jasper; it is trained, and FINAL holds it for sentence-transformers too."""
    distill = (*TINY, "loss=embed_distill", f"loss.teacher={guide}", *DATA, f"cache_dir={tmp_path}")
    projection = "model.layers=[{type: Dense, out_features: 64}]"
    train(*distill, projection, "optimizer=adamw", "optimizer.lr=1e-2", "trainer.max_steps=12", "exp_name=student")
    losses = curve(tmp_path / "student")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    final = tmp_path / "student" / "FINAL"
    own = rankpo.load(final).encode(["a text", "another one"])
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(final), device="cpu")
    assert own.shape == (2, 64)
    np.testing.assert_allclose(theirs.encode_document(["a text", "another one"]), own, atol=1e-5)


def test_what_cannot_be_a_guide_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"loss: .*nowhere: no such folder"):
        trainer_of(*GIST, f"loss.guide={tmp_path}/nowhere", f"cache_dir={tmp_path}")
    reranker = ("model=tiny_bert", "kind=reranker", "loss=softmax", "datasets=[toy_graded]", "trainer.max_steps=1")
    train(*reranker, f"cache_dir={tmp_path}", "exp_name=reranker")
    with pytest.raises(
        ConfigError, match="holds a model of kind reranker; a guide or teacher must be an embedding model"
    ):
        trainer_of(*GIST, f"loss.guide={tmp_path}/reranker/FINAL", f"cache_dir={tmp_path}")


def test_a_teacher_with_several_vectors_per_text_is_refused_in_one_line(tmp_path):
    options = [option for option in LATE if option.startswith(("model", "kind="))]
    data = ("datasets=[toy_graded]", "loss=embed_distill", "dataloader.group_size=3")
    with pytest.raises(ConfigError, match="a teacher of kind late_interaction has several vectors per text"):
        trainer_of(*options, *data, f"cache_dir={tmp_path}")
