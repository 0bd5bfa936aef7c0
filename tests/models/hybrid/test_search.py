"""task=encode and task=search of a hybrid model: its parts on disk, exact and two-stage search, and what is refused."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rankpo.errors import ConfigError
from rankpo.models.hybrid.parts import sparse_of
from rankpo.retrieval.stored import HybridEmbeddings, open_stored
from rankpo.types import Vectors
from tests.models.hybrid.test_hybrid import QUERIES, TEXTS, encoded, hybrid, naive_scores
from tests.runs import train

CORPUS = [*TEXTS, "", "rain and mud, rain and mud", "soil, soil, " * 4 + "soil"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved model, a corpus, queries, and the encoded corpus: (folder, model, words of the commands)."""
    folder = tmp_path_factory.mktemp("hybrid")
    words = (
        *("model=tiny_bert", "kind=hybrid", "model.random.num_hidden_layers=1", "model.query_max_length=64"),
        *("model.passage_max_length=64", f"cache_dir={folder}", f"runs_dir={folder}"),
    )
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        lines = [json.dumps({"id": f"{name[0]}{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    encode = ("task=encode", f"task.corpus={folder}/corpus.jsonl", "task.shard_size=3", "exp_name=index")
    index = train(*words, *encode).run_dir / "embeddings"
    return folder, index, words


def scores_of(model, texts=CORPUS, queries=QUERIES):
    """[q, c] scores by `similarity`, in training's form."""
    made = []
    for part, role in ((queries, "query"), (texts, "candidate")):
        sequences = model.inputs.sequences_of(part, role)
        made.append(Vectors(model.encode_sequences(sequences), model.counts(sequences)))
    return model.similarity(*made)


def model_of(words):
    from rankpo.config.compose import compose
    from rankpo.tasks.models import build_model
    from rankpo.tasks.seeds import seed_everything

    experiment = compose([*words, "task=encode"])
    seed_everything(experiment.seed)
    return build_model(experiment.model, experiment.explicit, print).eval()


def search(world, *overrides, name="found"):
    folder, index, words = world
    task = ("task=search", f"task.index={index}", f"task.queries={folder}/queries.jsonl", "task.top_k=4")
    done = train(*words, *task, f"exp_name={name}", "overwrite=true", *overrides)
    lines = [json.loads(line) for line in (done.run_dir / "search" / "hits.jsonl").read_text().splitlines()]
    return [[(hit["id"], hit["score"]) for hit in line["hits"]] for line in lines]


def expected(scores, depth=4, candidates=None):
    """The best hits of [q, c] scores. candidates: column numbers for each query."""
    found = []
    for row, values in enumerate(scores.tolist()):
        allowed = range(len(values)) if candidates is None else candidates[row]
        best = sorted(allowed, key=lambda number: -values[number])[:depth]
        found.append([(f"c{number}", pytest.approx(values[number], abs=1e-4)) for number in best])
    return found


def test_the_parts_stand_beside_each_other_on_disk(world):
    _, index, words = world
    stored = open_stored(index)
    assert isinstance(stored, HybridEmbeddings) and stored.ids() == [f"c{number}" for number in range(len(CORPUS))]
    names = {path.name for path in index.glob("shard-00000*")}
    assert names == {
        *("shard-00000.npy", "shard-00000.weights.npy", "shard-00000.entries.npy", "shard-00000.counts.npy"),
        *("shard-00000.ids.txt", "shard-00000.sums.json"),
    }
    model = model_of(words)
    direct = model.encode_stored(CORPUS, "passage")
    for blocks in (list(stored.blocks()), [stored.vectors(np.arange(len(CORPUS)))]):
        assert_close(torch.cat([block.rows for block in blocks]), direct.rows, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([block.counts for block in blocks]), direct.counts)
    assert sum(len(block) for block in stored.blocks(4)) == 4
    for part in ("dense", "sparse", "colbert"):
        blocks, whole = list(stored.part_blocks(part)), model.stored_part(direct, part)
        assert_close(torch.cat([block.rows for block in blocks]), whole.rows, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([block.counts for block in blocks]), whole.counts)


def test_search_finds_the_best_sums(world):
    assert search(world) == expected(scores_of(model_of(world[2])))


@pytest.mark.parametrize("parts", ["[dense]", "[sparse]", "[colbert,dense]"])
def test_one_index_serves_every_choice_of_parts_and_weights(world, parts):
    chosen = (f"model.parts={parts}", "model.dense_weight=0.4")
    assert search(world, *chosen) == expected(scores_of(model_of([*world[2], *chosen])))


@pytest.mark.parametrize("part", ["dense", "sparse", "colbert"])
def test_two_stages_score_the_candidates_of_a_part(world, part):
    first = scores_of(model_of([*world[2], f"model.parts=[{part}]", f"model.{part}_weight=1"]))
    candidates = [sorted(range(len(CORPUS)), key=lambda n: -values[n])[:3] for values in first.tolist()]
    found = search(world, f"task.candidates={part}", "task.top_k=3", "task.candidate_depth=3")
    assert found == expected(scores_of(model_of(world[2])), 3, candidates)


def test_vectors_in_half_precision_keep_weights_and_ids(world):
    folder, _, words = world
    task = ("task=encode", f"task.corpus={folder}/corpus.jsonl", "task.dtype=float16", "exp_name=half")
    stored = open_stored(train(*words, *task).run_dir / "embeddings")
    direct = model_of(words).encode_stored(CORPUS, "passage")
    rows = stored.vectors(np.arange(len(CORPUS))).rows
    assert torch.equal(rows[:, -2:], direct.rows[:, -2:]) and not torch.equal(rows[:, :-2], direct.rows[:, :-2])
    assert_close(rows, direct.rows, rtol=1e-3, atol=1e-3)


def test_scores_without_gradient_equal_the_formulas():
    """Sparse products in place of tensors of the vocabulary's size."""
    model = hybrid(colbert_dim=8)
    queries, texts = (Vectors(item.rows.detach(), item.counts) for item in encoded(model))
    parts = naive_scores(model)
    assert_close(model.stored_similarity(queries, texts), parts[0] + 0.3 * parts[1] + parts[2], rtol=1e-4, atol=1e-5)
    chosen = texts.select(torch.tensor([2, 0]))
    pairs = model.stored_paired(queries, chosen)
    assert_close(pairs, model.similarity(queries, chosen).diagonal(), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.paired(queries, chosen), pairs)


def test_weights_of_repeated_tokens_count_once():
    ids, weights = np.array([5, 7, 5, 7, 9, 5]), np.array([1.0, 0, 3, 2, 4, 8])
    made = sparse_of(ids, weights, torch.tensor([4, 0, 2]))
    assert made.rows.tolist() == [[5, 3], [7, 2], [5, 8], [9, 4]] and made.counts.tolist() == [2, 0, 2]


REFUSED = {
    "faiss": (("task.backend=faiss",), "backend=faiss supports one vector per text, but kind=hybrid has several"),
    "inverted": (("task.backend=inverted",), "backend=inverted needs sparse vectors"),
    "no such part": (("task.candidates=title",), "candidates must be one of bm25, dense, sparse, colbert, or the file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_search_it_is_refused(world, name):
    words, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        search(world, *words)


def test_a_part_of_another_kind_of_index_is_refused(world):
    folder, _, words = world
    plain = [word for word in words if word != "kind=hybrid"]
    task = ("task=encode", f"task.corpus={folder}/corpus.jsonl", "exp_name=plain")
    index = train(*plain, *task).run_dir / "embeddings"
    asked = ("task=search", f"task.index={index}", f"task.queries={folder}/queries.jsonl", "task.candidates=dense")
    with pytest.raises(
        ConfigError, match=r"task\.candidates=dense is a part of a hybrid model, and .* holds dense vectors"
    ):
        train(*plain, *asked, "exp_name=refused")


def test_pooling_and_engines_are_refused(world):
    folder, _, words = world
    for key, message in (
        ("task.pool_factor=2", "kind=hybrid has none"),
        ("task.engine=qdrant", "needs sparse vectors"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(
                *words, "task=encode", f"task.corpus={folder}/corpus.jsonl", key, "exp_name=refused", "overwrite=true"
            )
