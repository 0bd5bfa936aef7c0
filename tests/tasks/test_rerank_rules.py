"""task=rerank by the rules of the collection: equal to trec_eval, and to what evaluation and search measure."""

import json
import random

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, nDCG

from rankpo.data.generated.toy_lists import ToyLists
from rankpo.data.readers.beir import Beir, write_beir
from rankpo.data.readers.ranked_lists import RankedLists
from rankpo.data.readers.requests import of_file
from rankpo.data.readers.trec import read_qrels, read_run, write_run
from rankpo.data.shape import declared
from rankpo.errors import ConfigError
from rankpo.evaluation.lists import ListwiseEvaluator
from rankpo.evaluation.rules import Rules
from rankpo.tasks.work.rerank import _sigmoid
from rankpo.types import Example
from tests.models.saved import saved
from tests.models.test_reranker import model_of
from tests.runs import TINY, train

WORDS = ("mole", "worm", "stone", "cloud", "river", "lamp", "bridge", "winter", "signal", "forest")
NAMES = [f"d{number}" for number in range(12)]


def graded(folder, queries=("q0", "q1", "q2", "q3"), corpus=NAMES):
    """A collection with grades 0 to 3 and a first stage with ties; queries may be documents. Returns nothing."""
    rng = random.Random(5)
    texts = {name: " ".join(rng.choices(WORDS, k=6)) for name in dict.fromkeys((*corpus, *queries))}
    qrels = {query: {name: rng.choice((0, 1, 2, 3)) for name in rng.sample(corpus, 8)} for query in queries}
    write_beir(folder / "beir", [(name, texts[name]) for name in corpus], [(q, texts[q]) for q in queries], qrels)
    run = {query: {name: float(rng.choice((1, 2, 3, 4))) for name in corpus} for query in queries}
    write_run(folder / "first.trec", run)
    saved(model_of("encoder"), folder / "FINAL", {})


def rerank(folder, name, *overrides):
    of_model = (
        "model=tiny_bert",
        "kind=reranker",
        f"model.load_from={folder}/FINAL",
        f"cache_dir={folder}",
        f"exp_name={name}",
    )
    train("task=rerank", *of_model, *overrides)
    found = folder / name / "rerank"
    metrics = found / "metrics.json"
    return read_run(found / "run.trec"), json.loads(metrics.read_text()) if metrics.exists() else {}


def of_folder(folder):
    return f"task.run={folder}/first.trec", f"task.beir={folder}/beir"


def trec_eval(measures, qrels, run):
    """Means by trec_eval itself, of numbers as a run file holds them."""
    found = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    return {name: found[measure] for name, measure in measures.items()}


MEASURES = {"ndcg@5": nDCG @ 5, "ndcg@10": nDCG @ 10, "map": AP, "mrr@20": RR, "recall@3": R @ 3}
AT_TWO = {"map": AP(rel=2), "mrr@20": RR(rel=2), "recall@3": R(rel=2) @ 3}


@pytest.mark.parametrize(("measures", "keys"), [(MEASURES, ()), (AT_TWO, ("task.relevant_from=2",))])
def test_grades_are_measured_as_trec_eval_measures_them(tmp_path, measures, keys):
    graded(tmp_path)
    new, found = rerank(tmp_path, "x", *of_folder(tmp_path), f"task.metrics=[{','.join(measures)}]", *keys)
    qrels = read_qrels(tmp_path / "beir/qrels/test.tsv")
    for run, metrics in ((new, found["metrics"]), (read_run(tmp_path / "first.trec"), found["first_stage"])):
        assert {name: metrics[name] for name in measures} == pytest.approx(trec_eval(measures, qrels, run), abs=1e-9)


def test_gain_is_a_key_and_the_other_one_stands_beside_it(tmp_path):
    graded(tmp_path)
    _, linear = rerank(tmp_path, "x", *of_folder(tmp_path), "task.metrics=[ndcg@5]")
    _, exponential = rerank(tmp_path, "y", *of_folder(tmp_path), "task.metrics=[ndcg@5]", "task.gain=exp")
    assert linear["metrics"]["ndcg@5"] == linear["metrics"]["ndcg_linear@5"] != linear["metrics"]["ndcg_exp@5"]
    assert exponential["metrics"]["ndcg@5"] == linear["metrics"]["ndcg_exp@5"]
    with pytest.raises(ConfigError, match=r"task\.gain must be one of exp, linear, got 'log'"):
        rerank(tmp_path, "z", *of_folder(tmp_path), "task.gain=log")


def collection(folder, *overrides):
    return ("datasets=[beir]", f"datasets.beir.path={folder}/beir", f"cache_dir={folder}", *overrides)


def test_queries_that_are_documents_are_measured_alike_by_evaluate_search_and_rerank(tmp_path):
    """As in ArguAna: every query finds itself first, and no task counts that."""
    graded(tmp_path, queries=("d1", "d2", "d3"))
    train(*TINY, *collection(tmp_path), "task=encode", "exp_name=e")
    train(*TINY, *collection(tmp_path), "task=search", f"task.index={tmp_path}/e/embeddings", "exp_name=s")
    searched = read_run(tmp_path / "s/search/run.trec")
    assert not any(query in hits for query, hits in searched.items())
    data = ("eval_datasets=[beir]", f"eval_datasets.beir.path={tmp_path}/beir", f"cache_dir={tmp_path}")
    metrics = "task.metrics=[ndcg@5,map,recall@3]"
    train(*TINY, *data, "task=evaluate", metrics, "exp_name=v")
    (report,) = tmp_path.glob("v/evaluation/model/*/metrics.json")
    evaluated = json.loads(report.read_text())["metrics"]
    for name, run in (("a", "s/search/run.trec"), ("b", "with.trec")):
        if name == "b":  # a run that still holds them, from another tool
            write_run(tmp_path / run, {query: {**hits, query: 99.0} for query, hits in searched.items()})
        options = (f"task.run={tmp_path}/{run}", f"task.beir={tmp_path}/beir", "task.depth=11", metrics)
        new, found = rerank(tmp_path, name, *options)
        assert {key: found["first_stage"][key] for key in evaluated} == pytest.approx(evaluated)
        assert all(query not in hits and len(hits) == 11 for query, hits in new.items())


def test_identical_ids_stay_where_the_key_says_so(tmp_path):
    graded(tmp_path, queries=("d1", "d2"))
    keys = ("task.ignore_identical_ids=false", "task.depth=null")
    new, _ = rerank(tmp_path, "x", *of_folder(tmp_path), *keys)
    assert all(query in hits for query, hits in new.items())
    train(*TINY, *collection(tmp_path), "task=encode", "exp_name=e")
    index = ("task=search", f"task.index={tmp_path}/e/embeddings")
    for name, keys in (("s", "task.ignore_identical_ids=false"), ("t", "datasets.beir.ignore_identical_ids=false")):
        train(*TINY, *collection(tmp_path, keys), *index, f"exp_name={name}")
        assert all(query in hits for query, hits in read_run(tmp_path / name / "search/run.trec").items())


def test_depth_counts_documents_that_are_scored(tmp_path):
    """The query's own document, best of the first stage, takes no place of the two."""
    graded(tmp_path, queries=("d1",))
    write_run(tmp_path / "first.trec", {"d1": {"d1": 9.0, "d2": 8.0, "d3": 7.0, "d4": 6.0}})
    new, _ = rerank(tmp_path, "x", *of_folder(tmp_path), "task.depth=2")
    assert set(new["d1"]) == {"d2", "d3"}


def requests_file(path, candidates, query="moles"):
    path.write_text(json.dumps({"query": {"text": query, "qid": "q"}, "candidates": candidates}) + "\n")
    return path


def test_requests_are_in_the_order_of_their_scores_and_ties_as_in_trec_eval(tmp_path):
    given = [("a", 1.0), ("b", 3.0), ("c", 3.0), ("d", 2.0)]
    path = requests_file(tmp_path / "r.jsonl", [{"docid": n, "score": s, "text": n} for n, s in given])
    (request,) = of_file(path)
    assert request.document_ids == request.documents == ("c", "b", "d", "a")
    assert request.chosen(lambda query, scores: Rules().hits(query, scores, 2)).document_ids == ("c", "b")


def test_titles_of_requests_stand_as_the_format_says(tmp_path):
    candidates = [
        {"docid": "1", "title": "Moles", "text": "dig"},
        {"docid": "2", "doc": {"title": "Cats", "segment": "sleep"}},
        {"docid": "3", "title": "Outer", "doc": {"text": "{title}"}},
        {"docid": "4", "title": None, "text": " as it is "},
        {"docid": "5", "title": "", "text": "untitled"},
    ]
    path = requests_file(tmp_path / "r.jsonl", candidates)
    (request,) = of_file(path)
    assert request.documents == ("Moles dig", "Cats sleep", "Outer {title}", "as it is", "untitled")
    (request,) = of_file(path, "{text}")
    assert request.documents == ("dig", "sleep", "{title}", "as it is", "untitled")
    graded(tmp_path)
    titled, _ = rerank(tmp_path, "x", f"task.requests={path}")
    plain, _ = rerank(tmp_path, "y", f"task.requests={path}", "task.document_format='{text}'")
    assert titled["q"]["1"] != plain["q"]["1"] and titled["q"]["4"] == plain["q"]["4"]


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"text": "b", "score": "-"}, r"r.jsonl:1: candidates\[1\].score must be a finite number, got '-'"),
        ({"text": "b", "score": True}, "score must be a finite number, got True"),
        ({"text": "b", "score": [1]}, r"score must be a finite number, got \[1\]"),
        ({"text": "b", "score": "nan"}, "score must be a finite number, got 'nan'"),
        ({"text": "b", "score": "-Infinity"}, "score must be a finite number, got .-Infinity"),
        ({"text": "b", "docid": "B"}, "document B has no score, but other documents have; set a score for all"),
        ({"text": "b", "score": 1, "title": 7}, r"candidates\[1\].title must be a text, got 7"),
    ],
)
def test_scores_and_titles_that_are_none_are_named(tmp_path, candidate, message):
    path = tmp_path / "r.jsonl"
    requests_file(path, [{"text": "a", "score": 2}, candidate])
    with pytest.raises(ValueError, match=message):
        list(of_file(path))


def test_requests_are_measured_by_the_same_rules(tmp_path):
    graded(tmp_path, queries=("d1", "d2"))
    folder = Beir(name="b", path=str(tmp_path / "beir"))
    texts = dict(folder.corpus())
    first = read_run(tmp_path / "first.trec")
    lines = [
        {"query": {"text": text, "qid": name}, "candidates": [
            {"docid": document, "score": score, "text": texts[document]} for document, score in first[name].items()
        ]}
        for name, text in folder.queries()
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    qrels = f"task.qrels={tmp_path}/beir/qrels/test.tsv"
    of_run, metrics = rerank(tmp_path, "x", *of_folder(tmp_path), "task.depth=5")
    of_requests, same = rerank(tmp_path, "y", f"task.requests={tmp_path}/r.jsonl", qrels, "task.depth=5")
    assert {query: set(hits) for query, hits in of_requests.items()} == {q: set(hits) for q, hits in of_run.items()}
    assert same["first_stage"] == metrics["first_stage"] and same["metrics"] == pytest.approx(metrics["metrics"])


def test_probabilities_that_a_run_cannot_tell_apart_are_ties_in_the_metrics_too():
    probabilities = _sigmoid(np.array([40.0, 41.0, 3.0], dtype=np.float32))
    written = [float(f"{float(value):.9g}") for value in probabilities]
    assert [np.float32(value) for value in written] == list(probabilities)
    assert probabilities[0] == probabilities[1] > probabilities[2]


class Scores:
    """Scores in the order of the slots."""

    def __init__(self, scores):
        from rankpo.models.random_weights import byte_tokenizer
        from rankpo.models.reranker.inputs import RerankerInputs
        from rankpo.models.reranker.settings import RerankerSettings

        self.inputs = RerankerInputs(byte_tokenizer(), RerankerSettings())
        self.scores = np.array(scores, dtype=np.float32)

    def slot_scores(self, table):
        return self.scores[: len(table.candidates)]


@pytest.mark.parametrize(("relevant_from", "rank"), [(1, 1), (2, 1), (3, 2)])
def test_a_judged_collection_of_lists_keeps_its_rules_in_evaluation(tmp_path, relevant_from, rank):
    """Grades 2, 3, 0 scored 3, 2, 1: linear nDCG is (2 + 3/log2(3)) / (3 + 2/log2(3))."""
    texts = {"a": "mole", "b": "worm", "c": "stone"}
    write_beir(tmp_path / "beir", texts.items(), [("q", "moles")], {"q": {"a": 2, "b": 3, "c": 0}})
    data = Beir(name="beir", path=str(tmp_path / "beir"), relevant_from=relevant_from)
    evaluator = ListwiseEvaluator(data, tmp_path, ["ndcg@3", "mrr@3"], lambda message: None)
    found = evaluator.evaluate(Scores([3, 2, 1])).metrics
    assert found["ndcg@3"] == pytest.approx((2 + 3 / np.log2(3)) / (3 + 2 / np.log2(3)))
    assert found["mrr@3"] == 1 / rank


@pytest.mark.parametrize(("relevant_from", "recall"), [(1, 0), (0.5, 0.5), (0.3, 2 / 3)])
def test_ranked_lists_say_what_is_relevant(tmp_path, relevant_from, recall):
    """Of relevance 1, 1/2 and 1/3 the last two are ranked first."""
    line = {"query": "q", "passages": ["a", "b", "c"], "ranking": [0, 1, 2]}
    (tmp_path / "l.jsonl").write_text(json.dumps(line) + "\n")
    data = RankedLists(name="l", path=str(tmp_path / "l.jsonl"), relevant_from=relevant_from)
    evaluator = ListwiseEvaluator(data, tmp_path, ["recall@2"], lambda message: None)
    assert evaluator.evaluate(Scores([1, 2, 3])).metrics["recall@2"] == pytest.approx(recall)


def test_a_dataset_declares_what_its_examples_are():
    lists = ToyLists(name="x", num_passages=4)
    assert lists.shape.has_lists and not lists.shape.has_pairs and lists.judgements is None
    pairs = ToyLists(name="x", num_passages=2)
    assert pairs.shape.has_pairs and not pairs.shape.has_lists


class Foreign:
    """A judged collection of another package, which inherits nothing."""

    name, ignore_identical_ids, relevant_from, gain = "foreign", True, 1, "linear"

    def fingerprint(self):
        return "foreign"

    def examples(self):
        yield Example("moles", ("dig", "sleep"), (1.0, 0.0), "q")

    def corpus(self):
        yield "a", "dig"

    def queries(self):
        yield "q", "moles"

    def qrels(self):
        return {"q": {"a": 1}}


def test_datasets_of_other_packages_need_declare_nothing():
    foreign = declared(Foreign())
    assert foreign.judgements is not None and foreign.shape.has_pairs and foreign.name == "foreign"
    lists = ToyLists(name="x")
    assert declared(lists) is lists
    assert Rules.of(foreign.judgements) == Rules(gain="linear", ignore_identical_ids=True)
