"""Ranking metrics: worked by hand, equal to ir_measures and scikit-learn, and RankPO's own variants beside them."""

import math

import numpy as np
import pytest

from rankpo.data.readers.trec import order
from rankpo.evaluation.metrics import METRICS, area_under_curve, evaluate_run, parse_metric, preference_accuracy

QRELS = {"q": {"d1": 3, "d2": 2, "d3": 1, "d4": 0, "d5": 1}}
RUN = {"q": {"d2": 0.9, "d9": 0.8, "d1": 0.7, "d4": 0.6, "d3": 0.5}}  # d5 missed, d9 unjudged


def value(name: str, run=RUN, qrels=QRELS, **settings) -> float:
    return evaluate_run(run, qrels, [name], **settings).metrics[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg_linear@3", 0.735007),
        ("ndcg_linear@5", 0.748546),
        ("ndcg_exp@3", 0.692020),
        ("ndcg_exp@5", 0.701061),
        ("ndcg@3", 0.692020),
        ("mrr@10", 1.0),
        ("map", (1 + 2 / 3 + 3 / 5) / 4),
        ("map@3", 0.416667),
        ("precision@3", 2 / 3),
        ("precision@10", 3 / 10),  # over k, also when fewer were retrieved
        ("recall@3", 1 / 2),
        ("rankpo/recall@3", 2 / 3),
        ("hit_rate@1", 1.0),
        ("judged@3", 2 / 3),
        ("rankpo/ndcg@3", 0.703918),
        ("rankpo/ndcg@5", 0.885460),  # the missed d5 costs nothing here
        ("auc", 3 / 6),
    ],
)
def test_golden_example(name, expected):
    """The expected values were measured with ir_measures and scikit-learn.

    auc: relevant d2 .9, d1 .7, d3 .5; others d9 .8, d4 .6. Above: d2 both, d1 one, d3 none: 3 of 6.
    """
    assert value(name) == pytest.approx(expected, abs=1e-6)


def test_ndcg_on_paper():
    """Gains 2^g - 1: run 3, 0, 7 over log2(2), log2(3), log2(4); ideal 7, 3, 1."""
    expected = (3 + 7 / 2) / (7 + 3 / math.log2(3) + 1 / 2)
    assert value("ndcg@3") == pytest.approx(expected, rel=1e-12)
    linear = (2 + 3 / 2) / (3 + 2 / math.log2(3) + 1 / 2)
    assert value("ndcg@3", gain="linear") == pytest.approx(linear, rel=1e-12)


def test_grades_made_binary():
    binary = {"q": {name: min(1, grade) for name, grade in QRELS["q"].items()}}
    for gain in ("exp", "linear"):
        assert value("ndcg@3", qrels=binary, gain=gain) == pytest.approx(0.703918, abs=1e-6)
        assert value("ndcg@5", qrels=binary, gain=gain) == pytest.approx(0.736590, abs=1e-6)


def test_graded_judgements_are_reported_under_both_gains():
    assert set(evaluate_run(RUN, QRELS, ["ndcg@3"]).metrics) == {"ndcg@3", "ndcg_exp@3", "ndcg_linear@3"}
    assert set(evaluate_run(RUN, {"q": {"d1": 1}}, ["ndcg@3"]).metrics) == {"ndcg@3"}


def test_relevant_from_moves_the_bar():
    assert value("recall@3", relevant_from=2) == 1.0
    assert value("recall@3", relevant_from=3) == 1.0
    assert value("mrr@10", relevant_from=3) == pytest.approx(1 / 3)


def test_the_mean_is_over_every_query_that_has_something_to_find():
    """One perfect query, one that the run lacks, one without a relevant document, one without judgements: 1/2."""
    qrels = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 0}}
    run = {"a": {"x": 1.0}, "c": {"z": 1.0}, "d": {"x": 1.0}}
    result = evaluate_run(run, qrels, ["mrr@10", "judged@10"])
    assert result.metrics == {"mrr@10": 0.5, "judged@10": 0.5}
    assert result.counts == {"queries": 2, "missing": 1, "without_relevant": 1, "unjudged": 1}
    assert result.per_query == {"a": {"mrr@10": 1, "judged@10": 1}, "b": {"mrr@10": 0, "judged@10": 0}}


def test_ties_go_to_the_larger_id_whatever_the_order_of_the_file():
    for scores in ({"a": 1.0, "b": 1.0, "c": 2.0}, {"c": 2.0, "b": 1.0, "a": 1.0}):
        assert order(scores) == ["c", "b", "a"]
    assert order({"9": 0.0, "10": 0.0}) == ["9", "10"]  # as text
    assert value("mrr@10", {"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}}) == 1
    assert value("mrr@10", {"q": {"b": 1.0, "c": 1.0}}, {"q": {"b": 1}}) == 0.5


def test_negative_grades_count_as_0():
    qrels = {"q": {"a": 1, "b": -2}}
    assert value("ndcg@2", {"q": {"b": 2.0, "a": 1.0}}, qrels) == pytest.approx(1 / math.log2(3))


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(score):
    with pytest.raises(ValueError, match=rf"query q, document d: the score is {score}"):
        evaluate_run({"q": {"d": score}}, {"q": {"d": 1}}, ["mrr@10"])


def random_case(seed: int, *, grades: int = 4, ties: bool = True):
    """30 queries, up to 60 documents: runs with ties, queries that the run lacks, some without anything relevant."""
    rng = np.random.default_rng(seed)
    documents = [f"d{number}" for number in range(60)]
    qrels, run = {}, {}
    for number in range(30):
        judged = rng.choice(documents, size=rng.integers(1, 20), replace=False)
        qrels[f"q{number}"] = {str(name): int(rng.integers(0, grades)) for name in judged}
        if rng.random() < 0.85:
            found = rng.choice(documents, size=rng.integers(1, 40), replace=False)
            scores = rng.integers(0, 8, size=len(found)) if ties else rng.permutation(len(found))
            run[f"q{number}"] = {str(name): float(score) for name, score in zip(found, scores, strict=True)}
    qrels["q0"] = {"d1": 0, "d2": 0}
    qrels["q1"] = {"d1": 1}
    run.pop("q1", None)
    return run, qrels


def ranks(run):
    """Scores that repeat our own order without ties: ir_measures' metrics do not agree on how to break ties."""
    return {query: {name: -float(rank) for rank, name in enumerate(order(found))} for query, found in run.items()}


OURS = ["ndcg_linear@3", "ndcg_linear@10", "mrr@10", "recall@5", "recall@100", "precision@5", "precision@50",
        "hit_rate@3", "map", "map@10", "judged@10"]  # fmt: skip
THEIRS = ["nDCG@3", "nDCG@10", "RR@10", "R@5", "R@100", "P@5", "P@50", "Success@3", "AP", "AP@10", "Judged@10"]


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_ir_measures_query_by_query(seed):
    ir_measures = pytest.importorskip("ir_measures", reason="the dev extra is not installed")
    run, qrels = random_case(seed)
    names = {ir_measures.parse_measure(theirs): ours for theirs, ours in zip(THEIRS, OURS, strict=True)}
    result = evaluate_run(run, qrels, OURS)
    compared = set()
    for item in ir_measures.iter_calc(list(names), qrels, ranks(run)):
        if item.query_id in result.per_query:
            ours = result.per_query[item.query_id][names[item.measure]]
            assert ours == pytest.approx(item.value, abs=1e-9), (item.query_id, item.measure)
            compared.add((item.query_id, item.measure))
    found = [query for query in result.per_query if query in run]
    assert {(query, measure) for query in found for measure in names} <= compared
    assert result.counts["without_relevant"] >= 1 and result.counts["missing"] >= 1
    useful = {query: qrels[query] for query in result.per_query}
    for measure, mean in ir_measures.calc_aggregate(list(names), useful, ranks(run)).items():
        assert result.metrics[names[measure]] == pytest.approx(mean, abs=1e-9), measure


@pytest.mark.parametrize("seed", range(8))
def test_ties_are_broken_as_trec_eval_breaks_them(seed):
    """Raw scores with ties to trec_eval itself, which ir_measures asks for these measures; RR@k and Judged are not its."""
    ir_measures = pytest.importorskip("ir_measures", reason="the dev extra is not installed")
    run, qrels = random_case(seed)
    assert any(len(set(found.values())) < len(found) for found in run.values())
    pairs = {"ndcg_linear@3": "nDCG@3", "ndcg_linear@10": "nDCG@10", "map": "AP", "map@10": "AP@10"}
    pairs |= {"precision@5": "P@5", "recall@5": "R@5", "hit_rate@3": "Success@3"}
    result = evaluate_run(run, qrels, list(pairs))
    names = {ir_measures.parse_measure(theirs): ours for ours, theirs in pairs.items()}
    compared = 0
    for item in ir_measures.pytrec_eval.iter_calc(list(names), qrels, run):
        if item.query_id in result.per_query:
            ours = result.per_query[item.query_id][names[item.measure]]
            assert ours == pytest.approx(item.value, abs=1e-9), (item.query_id, item.measure)
            compared += 1
    assert compared == len(pairs) * len(result.per_query), "queries that the run lacks too: 0 on both sides"


@pytest.mark.parametrize("seed", range(4))
def test_exponential_gain_is_the_linear_one_of_transformed_grades(seed):
    ir_measures = pytest.importorskip("ir_measures", reason="the dev extra is not installed")
    run, qrels = random_case(seed)
    transformed = {query: {name: 2**grade - 1 for name, grade in found.items()} for query, found in qrels.items()}
    result = evaluate_run(run, qrels, ["ndcg@10"], gain="exp")
    for item in ir_measures.iter_calc([ir_measures.nDCG @ 10], transformed, ranks(run)):
        if item.query_id in result.per_query:
            assert result.per_query[item.query_id]["ndcg@10"] == pytest.approx(item.value, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_rankpo_variants_as_its_code_computes_them(seed, cut):
    """Its evaluation: labels as isin(retrieved, positives), scikit-learn's ndcg_score and roc_auc_score, capped recall."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    run, qrels = random_case(seed, grades=2)
    wanted = [f"rankpo/ndcg@{cut}", f"rankpo/recall@{cut}", f"rankpo/auc@{cut}"]
    result = evaluate_run(run, qrels, wanted)
    pool_labels: list[int] = []
    pool_scores: list[float] = []
    for query in result.per_query:
        positives = [name for name, grade in qrels[query].items() if grade]
        found = run.get(query, {})
        retrieved = sorted(found, key=lambda name: (found[name], name), reverse=True)
        labels = np.isin(retrieved, positives).astype(int)
        scores = np.array([found[name] for name in retrieved])
        pool_labels.extend(labels[:cut])
        pool_scores.extend(scores[:cut])
        hits = len(np.intersect1d(positives, retrieved[:cut]))
        recall = hits / min(cut, len(retrieved), len(positives)) if retrieved else 0.0
        assert result.per_query[query][f"rankpo/recall@{cut}"] == pytest.approx(recall)
        if len(retrieved) > 1:  # scikit-learn refuses a list of one
            expected = metrics.ndcg_score([labels], [scores], k=cut)
            assert result.per_query[query][f"rankpo/ndcg@{cut}"] == pytest.approx(expected, abs=1e-12)
    expected = metrics.roc_auc_score(pool_labels, pool_scores)
    assert result.metrics[f"rankpo/auc@{cut}"] == pytest.approx(expected, abs=1e-12)


def test_rankpo_sees_a_hundred_documents_only():
    run = {"q": {f"d{n:03}": -float(n) for n in range(150)}}
    assert value("rankpo/ndcg@100", run, {"q": {"d120": 1}}) == 0
    assert value("ndcg@150", run, {"q": {"d120": 1}}) > 0


def test_auc_by_pairs_and_its_queries():
    """b .5 beats c .1 and ties with d .5: 1.5 of 2. The query without another candidate is left out, and counted."""
    run = {"q": {"b": 0.5, "c": 0.1, "d": 0.5}, "r": {"x": 1.0}, "s": {"y": 1.0}}
    qrels = {"q": {"b": 1}, "r": {"x": 1}, "s": {"z": 1}, "t": {"z": 1}}
    result = evaluate_run(run, qrels, ["auc", "mrr@1"])
    assert result.metrics["auc"] == 0.75
    assert result.counts["auc_left_out"] == 3
    assert [query for query, values in result.per_query.items() if "auc" in values] == ["q"]


def test_auc_equals_the_loop_over_pairs():
    rng = np.random.default_rng(0)
    scores, relevant = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[relevant] for b in scores[~relevant]]
    assert area_under_curve(scores, relevant) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_a_metric_of_one_class_is_undefined_with_the_reason():
    result = evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 1}}, ["rankpo/auc@5", "auc", "mrr@1"])
    assert result.metrics == {"mrr@1": 1}
    assert result.undefined == dict.fromkeys(("rankpo/auc@5", "auc"), "all candidates are of one class")
    nothing = evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 0}}, ["mrr@1"])
    assert nothing.undefined == {"mrr@1": "no query has a relevant document"} and nothing.metrics == {}


@pytest.mark.parametrize(
    "name", ["ndcg", "ndgc@10", "mrr@0", "mrr@-1", "mrr@", "mrr@x", "recall", "auc@5", "map@", "", "@5"]
)
def test_unknown_names_list_the_valid_ones(name):
    with pytest.raises(ValueError, match=rf"unknown metric '{name}'; valid: ndcg@k, .*rankpo/auc@k, map, auc$"):
        parse_metric(name)


def test_names_are_parsed():
    assert parse_metric("rankpo/ndcg@20") == ("rankpo/ndcg", 20)
    assert parse_metric("map") == ("map", None) and parse_metric("map@5") == ("map", 5)
    for name in METRICS:
        assert parse_metric(name if name == "auc" else f"{name}@3")[0] == name


def test_an_unknown_gain_is_refused():
    with pytest.raises(ValueError, match="gain must be one of exp, linear, got 'log'"):
        evaluate_run(RUN, QRELS, ["ndcg@3"], gain="log")


def test_preference_accuracy_counts_ties_half():
    """Right, wrong, tied, right: 2.5 of 4."""
    assert preference_accuracy(np.array([2.0, 1, 3, 5]), np.array([1.0, 2, 3, 4])) == (0.625, 1)


@pytest.mark.parametrize("relevant_from", [-1, 0])
def test_unjudged_documents_are_never_relevant(relevant_from):
    """From grade 0 on, all five judged documents are relevant, and d9 of the run is not.

    Grades one higher and a bar of 1 say the same to ir_measures, which takes no bar of 0.
    """
    ir_measures = pytest.importorskip("ir_measures", reason="the dev extra is not installed")
    assert value("recall@5", relevant_from=relevant_from) == 4 / 5
    assert value("precision@2", relevant_from=relevant_from) == 1 / 2
    raised = {"q": {name: grade + 1 for name, grade in QRELS["q"].items()}}
    measures = [ir_measures.parse_measure(name) for name in ("R@5", "AP")]
    expected = ir_measures.calc_aggregate(measures, raised, RUN)
    found = evaluate_run(RUN, QRELS, ["recall@5", "map"], relevant_from=relevant_from).metrics
    assert list(found.values()) == pytest.approx([expected[measure] for measure in measures])


def test_judgements_below_the_bar_are_not_relevant_where_found_or_missed():
    """Grades -1 and 0 with the bar at 0: one relevant document, found second."""
    found = evaluate_run({"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": -1, "b": 0}}, ["recall@2", "mrr@2"], relevant_from=0)
    assert found.metrics == {"recall@2": 1.0, "mrr@2": 0.5}
