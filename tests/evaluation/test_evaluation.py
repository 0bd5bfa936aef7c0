"""Evaluators on a tiny model: equal to each text alone through transformers, and the same from two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from rankpo.data.generated.jobs import Jobs
from rankpo.data.readers.beir import Beir, write_beir
from rankpo.errors import ConfigError
from rankpo.evaluation.metrics import evaluate_run
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.evaluation.retrieval import RetrievalEvaluator, documents_by_row
from rankpo.types import Example
from tests.data.test_text_store import Fixed
from tests.runs import CONTRASTIVE, trainer_of
from tests.starts import Started

METRICS = ("ndcg@10", "mrr@10", "recall@20")
PROMPTS = ("model.query_prompt='query: '", "model.passage_prompt='passage: '")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One layer over bytes, queries cut at 64 tokens and passages at 96, with prompts."""
    folder = tmp_path_factory.mktemp("model")
    overrides = (*PROMPTS, f"cache_dir={folder}", "datasets.toy_contrastive.num_posts=4")
    model = trainer_of(*CONTRASTIVE, *overrides).policy.eval()
    config = BertConfig.from_dict(model.backbone.config.to_dict())
    plain = BertModel._from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(model.backbone.state_dict())
    object.__setattr__(model, "plain", plain)  # beside the model, not a part of it
    return model


def dev(part: str = "dev", **settings) -> Jobs:
    return Jobs(name=part, part=part, **{"num_profiles": 60, "num_posts": 8, "num_pairs": 3, **settings})


def embed(model, text: str, role: str) -> np.ndarray:
    """One text through transformers' own forward pass: no packing, no store, no sharing."""
    limit, prompt = (64, "query: ") if role == "query" else (96, "passage: ")
    encoded = model.tokenizer(prompt + text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        hidden = model.plain(**encoded).last_hidden_state[0]
    return normalize(hidden.double().mean(0), dim=0).numpy()


def test_retrieval_equals_each_text_alone_and_a_full_sort(model, tmp_path):
    data = dev()
    result = RetrievalEvaluator(data, tmp_path, METRICS, lambda message: None, top_k=20).evaluate(model)
    corpus = {name: embed(model, text, "passage") for name, text in data.corpus()}
    queries = {name: embed(model, text, "query") for name, text in data.queries()}
    qrels = data.qrels()
    assert set(result.run) == set(qrels)
    run = {}
    for query in qrels:
        scores = {name: float(queries[query] @ vector) for name, vector in corpus.items()}
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:20]
        run[query] = {name: scores[name] for name in best}
        assert len(result.run[query]) == 20
        for name, score in result.run[query].items():
            assert score == pytest.approx(scores[name], abs=1e-6)
            assert score >= scores[best[-1]] - 1e-6  # nothing better was left out
    expected = evaluate_run(run, qrels, METRICS, gain="exp")
    assert result.metrics == pytest.approx(expected.metrics, abs=1e-9)
    assert result.per_query.keys() == expected.per_query.keys()


def test_preferences_equal_each_text_alone(model, tmp_path):
    data = dev("preferences_dev")
    result = PreferenceEvaluator(data, tmp_path, lambda message: None).evaluate(model)
    margins = {}
    for example in data.examples():
        query = embed(model, example.query, "query")
        chosen, rejected = (float(query @ embed(model, text, "passage")) for text in example.candidates)
        margins[example.id] = chosen - rejected
    values = np.array(list(margins.values()))
    assert result.metrics["accuracy"] == pytest.approx((values > 0).mean())
    assert result.metrics["margin"] == pytest.approx(values.mean(), abs=1e-6)
    assert {name: item["accuracy"] for name, item in result.per_query.items()} == {
        n: float(v > 0) for n, v in margins.items()
    }
    assert result.counts == {"pairs": len(margins), "ties": 0, "not_pairs": 0}


def test_the_chosen_may_stand_second_and_equal_texts_tie(model, tmp_path):
    """Chosen second; both sides cut to the same tokens, so a tie of 1/2; a list and an equal pair are counted apart."""
    long = "x" * 200
    examples = [
        Example("q", ("apple", "sky"), (0.0, 1.0), "a"),
        Example("q", (f"{long}1", f"{long}2"), (1.0, 0.0), "b"),
        Example("q", ("apple", "sky", "sea"), (1.0, 0.0, 0.0), "c"),
        Example("q", ("apple", "sky"), (1.0, 1.0), "d"),
    ]
    result = PreferenceEvaluator(Fixed(examples), tmp_path, lambda message: None).evaluate(model)
    query, apple, sky = embed(model, "q", "query"), embed(model, "apple", "passage"), embed(model, "sky", "passage")
    first = float(query @ sky > query @ apple)
    assert {name: item["accuracy"] for name, item in result.per_query.items()} == {"a": first, "b": 0.5}
    assert result.per_query["a"]["group"] == result.per_query["b"]["group"]  # one query: they move together
    assert result.metrics["accuracy"] == (first + 0.5) / 2
    assert result.counts == {"pairs": 2, "ties": 1, "not_pairs": 2}


def test_no_pair_at_all_is_an_error(model, tmp_path):
    data = Fixed([Example("q", ("apple", "sky", "sea"), (1.0, 0.0, 0.0), "c")])
    with pytest.raises(ValueError, match=r"eval_datasets.fixed holds no pair of different relevance"):
        PreferenceEvaluator(data, tmp_path, lambda message: None).evaluate(model)


def corpus_of(tmp_path: Path, corpus, qrels, queries=(("q1", "apple"),), **settings) -> Beir:
    write_beir(tmp_path / "soil", corpus, queries, qrels)
    return Beir(name="soil", path=str(tmp_path / "soil"), **settings)


@pytest.mark.parametrize("reverse", [False, True])
def test_equal_scores_go_by_id_also_at_the_border_of_top_k(model, tmp_path, reverse):
    """Ten equal texts, five kept: those of the larger ids, whatever the order of the file."""
    corpus = sorted((f"d{number}", "the same") for number in range(10))
    data = corpus_of(tmp_path, corpus[::-1] if reverse else corpus, {"q1": {"d9": 1, "d0": 1}})
    result = RetrievalEvaluator(data, tmp_path, ["recall@5"], lambda message: None, top_k=5).evaluate(model)
    assert list(result.run["q1"]) == ["d9", "d8", "d7", "d6", "d5"]
    assert result.metrics["recall@5"] == 0.5


@pytest.mark.parametrize(("ignore", "kept"), [(True, {"d1", "d2"}), (False, {"q1", "d1"})])
def test_a_hit_with_the_query_s_own_id(model, tmp_path, ignore, kept):
    """The query's own text is in the corpus, as in ArguAna; the two others are the same text, so their order is fixed."""
    corpus = [("q1", "apple"), ("d1", "sky"), ("d2", "sky")]
    data = corpus_of(tmp_path, corpus, {"q1": {"d1": 1}}, ignore_identical_ids=ignore)
    result = RetrievalEvaluator(data, tmp_path, ["recall@5"], lambda message: None, top_k=2).evaluate(model)
    assert len(result.run["q1"]) == 2
    assert ("q1" in result.run["q1"]) != ignore
    if ignore:
        assert set(result.run["q1"]) == kept


def test_a_dropped_hit_makes_room_for_the_next_one(model, tmp_path):
    """Three queries that are the corpus: each finds the two others, and both fit into top_k."""
    texts = [("q1", "apple"), ("q2", "sky"), ("q3", "sea")]
    data = corpus_of(tmp_path, texts, {name: {"q1": 1} for name, _ in texts}, texts)
    result = RetrievalEvaluator(data, tmp_path, ["recall@5"], lambda message: None, top_k=2).evaluate(model)
    assert {query: set(found) for query, found in result.run.items()} == {
        "q1": {"q2", "q3"},
        "q2": {"q1", "q3"},
        "q3": {"q1", "q2"},
    }


def test_texts_are_searched_once_and_stand_by_their_largest_id(model, tmp_path):
    """The search keeps the first of equal scores: at the border, that must be the text of the larger id."""
    corpus = [("d1", "sky"), ("d5", "sea"), ("d9", "sky"), ("d3", "moon")]
    evaluator = RetrievalEvaluator(
        corpus_of(tmp_path, corpus, {"q1": {"d1": 1}}), tmp_path, ["mrr@1"], lambda message: None
    )
    table = evaluator.table(model.inputs.pieces())
    rows, documents = documents_by_row(table, [table.id(number) for number in range(len(table))])
    assert documents == [["d9", "d1"], ["d5"], ["d3"]]
    assert [model.tokenizer.decode(table.tokens(row)).split(": ")[-1] for row in rows] == ["sky", "sea", "moon"]


def test_queries_without_judgements_are_not_searched(model, tmp_path):
    data = corpus_of(tmp_path, [("d1", "sky")], {"q1": {"d1": 1}}, queries=[("q1", "apple"), ("q2", "sea")])
    result = RetrievalEvaluator(data, tmp_path, ["mrr@1"], lambda message: None).evaluate(model)
    assert set(result.run) == {"q1"} and result.counts["queries"] == 1


def test_judgements_without_anything_relevant_are_an_error(tmp_path):
    data = corpus_of(tmp_path, [("d1", "sky")], {"q1": {"d1": 0}})
    with pytest.raises(ConfigError, match=r"eval_datasets.soil: no judgement reaches grade 1"):
        RetrievalEvaluator(data, tmp_path, ["mrr@1"], lambda message: None)


def test_queries_without_a_relevant_document_are_said(model, tmp_path):
    judged = {"q1": {"d1": 1}, "q2": {"d1": 0}, "q3": {"d2": -1}}
    queries = [("q1", "apple"), ("q2", "sea"), ("q3", "sun")]
    data, said = corpus_of(tmp_path, [("d1", "sky"), ("d2", "sea")], judged, queries=queries), []
    result = RetrievalEvaluator(data, tmp_path, ["mrr@1"], said.append).evaluate(model)
    assert said[0].startswith("soil: 2 of 3 judged queries have no document of grade 1 or more and are left out")
    assert result.counts["queries"] == 1 and set(result.per_query) == {"q1"}


def test_the_judged_pairs_are_rows_of_the_table(model, tmp_path):
    data = corpus_of(tmp_path, [("d1", "sky"), ("d2", "sea")], {"q1": {"d2": 1}, "q2": {"d1": 1}}, queries=[("q2", "b"), ("q1", "a")])  # fmt: skip
    evaluator = RetrievalEvaluator(data, tmp_path, ["mrr@1"], lambda message: None)
    table = evaluator.table(model.inputs.pieces())
    texts = [[model.tokenizer.decode(table.tokens(row)) for row in pair] for pair in evaluator.pairs(table).tolist()]
    assert [[text.split(": ")[-1] for text in pair] for pair in texts] == [["a", "sea"], ["b", "sky"]]


PROGRAM = """
import json, sys
from pathlib import Path
from rankpo.runs import processes
from tests.runs import CONTRASTIVE, trainer_of
from tests.evaluation.test_evaluation import METRICS, dev
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.evaluation.retrieval import RetrievalEvaluator
folder = Path(sys.argv[1])
model = trainer_of(*CONTRASTIVE, f"cache_dir={folder}", "datasets.toy_contrastive.num_posts=4").policy
silent = lambda message: None
results = [RetrievalEvaluator(dev(), folder, METRICS, silent, top_k=20).evaluate(model),
           PreferenceEvaluator(dev("preferences_dev"), folder, silent).evaluate(model)]
found = [[dict(r.metrics), {k: dict(v) for k, v in r.per_query.items()}, dict(r.counts), {k: list(v) for k, v in r.run.items()}]
         for r in results]
name = f"{processes.world_size()}-{processes.rank()}.json"
(folder / name).write_text(json.dumps(found))
processes.shut_down()
"""


def test_two_processes_give_what_one_gives_on_every_rank(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for processes in (1, 2):
        started = Started(str(tmp_path), processes=processes, program=program)
        assert started.wait() == 0, started.stderr
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json"))
    assert first == second
    for alone, together in zip(one, first, strict=True):
        assert together[0] == pytest.approx(alone[0], abs=1e-6)
        assert together[1:] == alone[1:]
