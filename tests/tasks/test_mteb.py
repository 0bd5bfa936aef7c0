"""task=mteb: by the package itself, on a tiny task of its retrieval class, equal to what sentence-transformers gets there."""

from __future__ import annotations

import json

import pytest

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from tests.runs import TINY, train

mteb = pytest.importorskip("mteb")
CORPUS = {f"d{n}": f"document {n} about {word}" for n, word in enumerate(["red", "blue", "green", "iron", "glass"])}
QUERIES = {f"q{n}": f"which {word}" for n, word in enumerate(["red", "blue", "green", "iron", "glass"])}


@pytest.fixture
def tiny_task(monkeypatch):
    """A retrieval task in memory under the name TinyRetrieval."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class TinyRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="TinyRetrieval",
            description="tiny",
            reference="https://example.com",
            dataset={"path": "none/none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_):
            def rows(of):
                return Dataset.from_list([{"id": name, "text": text, "title": ""} for name, text in of.items()])

            part = {
                "corpus": rows(CORPUS),
                "queries": rows(QUERIES).remove_columns("title"),
                "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(5)},
                "top_ranked": {f"q{n}": list(CORPUS) for n in range(5)},
            }
            self.dataset = {"default": {"test": part}}
            self.data_loaded = True

    monkeypatch.setattr(mteb, "get_tasks", lambda tasks, languages=None: [TinyRetrieval()])
    return TinyRetrieval


def scores(folder) -> dict:
    (path,) = folder.rglob("TinyRetrieval.json")
    return json.loads(path.read_text())["scores"]["test"][0]


def test_an_embedding_model_gets_what_sentence_transformers_gets(tmp_path, tiny_task):
    prompts = ("model.query_prompt='find: '", "model.passage_prompt='text: '")
    train(*TINY, "loss=contrastive", "datasets=[toy_contrastive]", f"cache_dir={tmp_path}", "exp_name=t", *prompts)
    final = tmp_path / "t" / "FINAL"
    load = ("kind=embedding", "model=tiny_bert", f"model.load_from={final}", "model.random=null")
    task = ("task=mteb", "task.tasks=[TinyRetrieval]", f"task.output={tmp_path}/out", f"cache_dir={tmp_path}")
    experiment = compose([*load, *task, "exp_name=m"])
    (row,) = experiment.task(experiment)
    own = scores(tmp_path / "out")
    assert row == {"task": "TinyRetrieval", "score": own["main_score"]}
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(final), device="cpu")
    cache = mteb.ResultCache(tmp_path / "theirs")
    mteb.evaluate(model, [tiny_task()], cache=cache, show_progress_bar=False)
    theirs = scores(tmp_path / "theirs")
    assert own["ndcg_at_10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-6)


def test_a_reranker_scores_the_candidates_of_each_query(tmp_path, tiny_task):
    keys = (
        "model=tiny_bert",
        "kind=reranker",
        "task=mteb",
        "task.tasks=[TinyRetrieval]",
        f"task.output={tmp_path}/out",
    )
    experiment = compose([*keys, f"cache_dir={tmp_path}", "exp_name=m"])
    (row,) = experiment.task(experiment)
    assert 0 < row["score"] <= 1 and scores(tmp_path / "out")["main_score"] == row["score"]


def test_keys_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="tasks is empty"):
        compose(["task=mteb", "model=tiny_bert"])
    with pytest.raises(ConfigError, match=r"prompts.Other is for no task"):
        compose(["task=mteb", "model=tiny_bert", "task.tasks=[A]", "+task.prompts.Other=x"])
