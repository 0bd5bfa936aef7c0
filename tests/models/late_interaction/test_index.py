"""Token vectors on disk: ragged shards, pooling, exact search, two stages, fast-plaid, mining and evaluation."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rankpo.data.readers.beir import write_beir
from rankpo.data.readers.trec import read_run
from rankpo.errors import ConfigError
from rankpo.models.engine.maxsim import maxsim
from rankpo.models.late_interaction.pooling import pool_vectors
from rankpo.retrieval.embeddings import Embeddings
from rankpo.retrieval.ragged import search_stored
from rankpo.retrieval.shards import EncodingError
from rankpo.retrieval.stored import TokenEmbeddings, open_stored
from rankpo.types import Vectors
from tests.models.late_interaction.test_maxsim import vectors
from tests.runs import train

WORDS = ["river", "stone", "cloud", "forest", "signal", "bridge", "lamp", "winter"]
CORPUS = [(f"d{n}", f"{WORDS[n % 8]} {WORDS[(n * 3 + 1) % 8]} number {n}" + " and more" * (n % 5)) for n in range(30)]
QUERIES = [(f"q{n}", f"a {WORDS[n]} and a {WORDS[n + 1]}") for n in range(6)]
QRELS = {name: {f"d{n * 4 + 1}": 1, f"d{n}": 2} for n, (name, _) in enumerate(QUERIES)}
MODEL = (
    "model=tiny_bert",
    "kind=late_interaction",
    "model.random.num_hidden_layers=1",
    "model.dim=16",
    "model.query_expansion=fixed",
    "model.skip=[w]",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A BEIR folder and its encoding by a tiny model."""
    folder = tmp_path_factory.mktemp("world")
    write_beir(folder / "beir", CORPUS, QUERIES, QRELS)
    run(folder, "encoded", "task=encode", "task.shard_size=8")
    return folder


def run(folder, name, *overrides):
    common = ("datasets=[beir]", f"datasets.beir.path={folder}/beir", f"cache_dir={folder}", f"exp_name={name}")
    return train(*MODEL, *common, *overrides)


def search(folder, name, *overrides, index="encoded"):
    run(folder, name, "task=search", f"task.index={folder}/{index}/embeddings", "task.top_k=5", *overrides)
    return read_run(folder / name / "search" / "run.trec")


@pytest.fixture(scope="module")
def model(world):
    from rankpo.config.compose import compose
    from rankpo.tasks.models import build_model
    from rankpo.tasks.seeds import seed_everything

    experiment = compose([*MODEL])
    seed_everything(experiment.seed)
    return build_model(experiment.model, (), lambda line: None).eval()


@pytest.fixture(scope="module")
def table(model):
    """[6, 30] scores of the texts, without any index."""
    return model.scores([text for _, text in QUERIES], [text for _, text in CORPUS])


def best_of(table, depth=5):
    return {
        name: {CORPUS[place][0]: scores[place] for place in np.argsort(-scores, kind="stable")[:depth]}
        for (name, _), scores in zip(QUERIES, table, strict=True)
    }


def same(found, expected):
    assert {name: list(hits) for name, hits in found.items()} == {name: list(hits) for name, hits in expected.items()}
    for name, hits in expected.items():
        assert [*found[name].values()] == pytest.approx([float(score) for score in hits.values()], abs=1e-5)


def test_shards_hold_the_vectors_of_every_text(world, model):
    stored = open_stored(world / "encoded" / "embeddings")
    assert isinstance(stored, TokenEmbeddings) and stored.ids() == [name for name, _ in CORPUS]
    assert (stored.encoding.num_shards, stored.encoding.dim) == (4, 16)
    expected = [torch.from_numpy(rows) for rows in model.encode([text for _, text in CORPUS])]
    blocks = list(stored.blocks(20))
    assert [len(block) for block in blocks] == [8, 8, 4]
    assert_close(torch.cat([block.rows for block in blocks]), torch.cat(expected[:20]), atol=1e-5, rtol=0)
    chosen = stored.vectors(np.array([29, 0, 11, 0]))
    assert chosen.counts.tolist() == [len(expected[n]) for n in (29, 0, 11, 0)]
    assert_close(chosen.rows, torch.cat([expected[n] for n in (29, 0, 11, 0)]), atol=1e-5, rtol=0)
    with pytest.raises(EncodingError, match="holds tokens vectors, but dense or sparse vectors are needed"):
        Embeddings(world / "encoded" / "embeddings")


def test_a_damaged_shard_is_named_and_made_again(world, model, tmp_path):
    import shutil

    shutil.copytree(world / "beir", tmp_path / "beir")
    run(tmp_path, "e", "task=encode", "task.shard_size=16")
    folder = tmp_path / "e" / "embeddings"
    counts = np.load(folder / "shard-00001.counts.npy")
    np.save(folder / "shard-00001.counts.npy", counts[::-1])
    with pytest.raises(
        EncodingError, match=r"shard-00001.npy is damaged \(the checksum of shard-00001.counts.npy is wrong"
    ):
        list(open_stored(folder).blocks())
    run(tmp_path, "e", "task=encode", "task.shard_size=16")
    assert np.load(folder / "shard-00001.counts.npy").tolist() == counts.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_finds_what_the_texts_scores_say(world, table, dtype):
    if dtype == "float16":
        run(world, "half", "task=encode", "task.dtype=float16")
        found = search(world, "half-search", index="half")
        for name, hits in best_of(table).items():
            assert [*found[name].values()] == pytest.approx([float(score) for score in hits.values()], abs=2e-3)
        return
    same(search(world, "exact"), best_of(table))
    summary = json.loads((world / "exact" / "search" / "search.json").read_text())
    assert (summary["backend"], summary["documents"], summary["queries"]) == ("exact", 30, 6)


def test_blocks_do_not_change_the_search():
    queries, documents = vectors((3, 2, 4), 1, torch.float32), vectors((5, 1, 7, 2, 3, 6, 0, 4), 2, torch.float32)
    whole = search_stored(queries, [documents], maxsim, 6)
    parts = [documents.select(part) for part in torch.arange(8).split(3)]
    cut = search_stored(queries, parts, maxsim, 6)
    assert_close(cut[0], whole[0], atol=1e-5, rtol=0)
    assert cut[1].tolist() == whole[1].tolist()
    assert whole[1][0, 0] == int(maxsim(queries, documents)[0].argmax())


@pytest.mark.parametrize("stage", ["run", "bm25"])
def test_two_stages_score_the_candidates_of_the_first(world, table, tmp_path, stage):
    if stage == "run":
        first = {name: [f"d{n}" for n in range(number, 30, 4)] for number, (name, _) in enumerate(QUERIES)}
        lines = [
            f"{name} Q0 {doc} {rank} {9 - rank} x\n" for name, docs in first.items() for rank, doc in enumerate(docs)
        ]
        (tmp_path / "first.trec").write_text("".join([*lines, "q0 Q0 not-there 99 0 x\n"]))
        found = search(world, "second", f"task.candidates={tmp_path}/first.trec", "task.candidate_depth=6")
        first = {name: docs[:6] for name, docs in first.items()}
    else:
        from rankpo.retrieval.bm25 import Bm25Index, Bm25Settings

        index = Bm25Index([text for _, text in CORPUS], Bm25Settings())
        first = {}
        for name, text in QUERIES:
            scores = index.scores(text)
            first[name] = [CORPUS[n][0] for n in np.argsort(-scores, kind="stable")[:7] if scores[n] > 0]
        found = search(world, "words", "task.candidates=bm25", "task.candidate_depth=7")
    expected = {}
    for (name, _), scores in zip(QUERIES, table, strict=True):
        places = sorted((int(doc[1:]) for doc in first[name]), key=lambda place, scores=scores: -scores[place])[:5]
        expected[name] = {CORPUS[place][0]: scores[place] for place in places}
    same(found, expected)


REFUSED = {
    "no such run": (
        ("task.candidates=nothing.trec",),
        "task.candidates must be one of bm25, dense, sparse, colbert, or the file of a TREC run",
    ),
    "depth": (("task.candidates=bm25", "task.candidate_depth=3"), "candidate_depth=3 must be >= top_k=5"),
    "backend": (("task.candidates=bm25", "task.backend=faiss"), "backend=faiss must be exact"),
    "faiss": (("task.backend=faiss",), "backend=faiss supports one vector per text, but kind=late_interaction"),
    "plaid": (("task.backend=plaid",), "backend=plaid needs fast-plaid"),
    "another corpus": (("task.candidates=bm25", "task.corpus=pool"), "is not the corpus of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched_is_refused_by_name(world, monkeypatch, case):
    monkeypatch.setattr("rankpo.retrieval.plaid.find_spec", lambda name: None)
    keys, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        search(world, f"refused-{case.replace(' ', '-')}", *keys)
    assert message in str(error.value)


class Engine:
    """fast-plaid's interface over an exact search that rounds, as its index does."""

    built = 0

    def __init__(self, index, device):
        self.folder, self.device = index, device

    def create(self, documents_embeddings):
        Engine.built += 1
        Engine.documents = documents_embeddings

    def search(self, queries_embeddings, top_k, show_progress):
        found = []
        for query in queries_embeddings:
            scores = torch.stack([(query @ rows.T).amax(1).sum() for rows in Engine.documents])
            order = scores.argsort(descending=True)[:top_k].tolist()
            found.append([(number, round(float(scores[number]), 0)) for number in order])
        return found


def test_the_hits_of_fast_plaid_have_exact_scores_and_its_index_is_kept(world, table, monkeypatch):
    package, module = ModuleType("fast_plaid"), ModuleType("fast_plaid.search")
    module.FastPlaid = Engine
    monkeypatch.setitem(sys.modules, "fast_plaid", package)
    monkeypatch.setitem(sys.modules, "fast_plaid.search", module)
    monkeypatch.setattr("rankpo.retrieval.plaid.find_spec", lambda name: package)
    monkeypatch.setattr(Engine, "built", 0)
    same(search(world, "plaid", "task.backend=plaid"), best_of(table))
    same(search(world, "plaid-again", "task.backend=plaid"), best_of(table))
    assert Engine.built == 1


@pytest.mark.parametrize("factor", [2, 3, 1.5, 100])
def test_pooled_vectors_are_theirs(factor):
    theirs = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")
    given = vectors((9, 1, 2, 24, 3), 3, torch.float32)
    unit = Vectors(torch.nn.functional.normalize(given.rows, dim=1), given.counts)
    pooled = pool_vectors(unit, factor)
    expected = theirs.HierarchicalTokenPooling(factor).pool(
        list(unit.rows.split(unit.counts.tolist())), task="document"
    )
    assert pooled.counts.tolist() == [len(rows) for rows in expected]
    for ours, reference in zip(pooled.rows.split(pooled.counts.tolist()), expected, strict=True):
        assert_close(ours, reference, atol=1e-5, rtol=0)


def test_pooling_at_indexing_halves_the_vectors_and_is_part_of_the_index(world):
    run(world, "pooled", "task=encode", "task.pool_factor=2")
    whole, half = (open_stored(world / name / "embeddings") for name in ("encoded", "pooled"))
    sizes = [sum(int(block.counts.sum()) for block in stored.blocks()) for stored in (whole, half)]
    assert sizes[0] / 2 <= sizes[1] <= sizes[0] / 2 + 30
    assert len(search(world, "of-pooled", index="pooled")) == 6
    with pytest.raises(EncodingError, match=r"another encoding \(other pool_factor"):
        run(world, "pooled", "task=encode", "task.pool_factor=3")


def test_pooling_of_single_vectors_is_refused(world):
    with pytest.raises(ConfigError, match=r"task\.pool_factor=2 pools token vectors, and kind=embedding has none"):
        train(
            "model=tiny_bert", "kind=embedding", "task=encode", "task.pool_factor=2", "datasets=[beir]",
            f"datasets.beir.path={world}/beir", f"cache_dir={world}", "exp_name=single",
        )  # fmt: skip


def test_evaluation_ranks_as_the_search_does(world, table):
    evaluated = (
        "eval_datasets=[beir]",
        f"eval_datasets.beir.path={world}/beir",
        "task.top_k=5",
        "task.metrics=[ndcg@5]",
    )
    run(world, "evaluated", "task=evaluate", *evaluated)
    (trec,) = (world / "evaluated").rglob("run.trec")
    same(read_run(trec), best_of(table))


def test_hard_negatives_are_the_best_that_are_not_relevant(world, table):
    run(world, "mined", "task=mine", "mining=dense", "mining.corpus=own", "mining.num_negatives=3")
    lines = [json.loads(line) for line in (world / "mined" / "mined.jsonl").read_text().splitlines()]
    texts = dict(CORPUS)
    for line, (name, query), scores in zip(lines, QUERIES, table, strict=True):
        ranked = [CORPUS[n][0] for n in np.argsort(-scores, kind="stable")]
        expected = [texts[doc] for doc in ranked if doc not in QRELS[name]][:3]
        assert line["query"] == query and line["negatives"] == expected


def test_clusters_of_candidates_need_one_vector_each(world):
    with pytest.raises(ConfigError, match=r"mining\.sampling=cluster needs one vector per text"):
        run(world, "clusters", "task=mine", "mining=rankpo", "mining.corpus=own")
