"""task=rerank: from a first stage's run to a new order, its metrics, and everything that is refused on the way."""

import hashlib
import json
import random

import pytest

import rankpo
from rankpo.config.compose import compose
from rankpo.data.readers.beir import write_beir
from rankpo.data.readers.requests import of_file
from rankpo.data.readers.trec import read_run, write_run
from rankpo.errors import ConfigError
from rankpo.retrieval.bm25 import Bm25Index, Bm25Settings
from tests.models.saved import saved
from tests.models.test_reranker import model_of
from tests.runs import launch, train
from tests.trainers.test_reranker import WORDS, on_lists, record, write

DOCUMENTS = {"d1": "moles eat worms", "d2": "cats sleep", "d3": "a mole digs", "d4": "stones", "d5": ""}
QUERIES = {"q1": "what do moles eat?", "q2": "who sleeps?", "q3": "nobody asked"}
QRELS = {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}, "q3": {"d4": 1}}
RUN = {"q1": {"d2": 9.0, "d4": 8.0, "d3": 7.5, "d1": 7.0, "d5": 1.0}, "q2": {"d1": 3.0, "d2": 2.0}}


@pytest.fixture
def folder(tmp_path):
    """A BEIR folder, a first stage's run and a saved reranker."""
    write_beir(tmp_path / "beir", DOCUMENTS.items(), QUERIES.items(), QRELS)
    write_run(tmp_path / "first.trec", RUN, tag="bm25")
    saved(model_of("encoder"), tmp_path / "FINAL", {})
    return tmp_path


def task(folder, *overrides):
    return (
        "task=rerank",
        "model=tiny_bert",
        "kind=reranker",
        f"model.load_from={folder}/FINAL",
        "exp_name=x",
        f"cache_dir={folder}",
        *overrides,
    )


def of_folder(folder, *overrides):
    return task(folder, f"task.run={folder}/first.trec", f"task.beir={folder}/beir", *overrides)


def expected_scores(folder, query, names):
    return dict(
        zip(
            names,
            rankpo.load(folder / "FINAL", "cpu").compute_score([(QUERIES[query], DOCUMENTS[n]) for n in names]),
            strict=True,
        )
    )


def test_a_run_gets_the_models_scores(folder):
    train(*of_folder(folder, "task.depth=3"))
    new = read_run(folder / "x" / "rerank" / "run.trec")
    assert set(new) == {"q1", "q2"}
    assert new["q1"] == pytest.approx(expected_scores(folder, "q1", ["d2", "d4", "d3"]), abs=1e-6)
    assert new["q2"] == pytest.approx(expected_scores(folder, "q2", ["d1", "d2"]), abs=1e-6)
    lines = [line.split() for line in (folder / "x" / "rerank" / "run.trec").read_text().splitlines()]
    of_first = [(line[2], float(line[4])) for line in lines if line[0] == "q1"]
    assert of_first == sorted(of_first, key=lambda item: -item[1])


def test_metrics_of_both_orders(folder):
    """q3 is judged and not in the run: it counts 0. First stage: q1 finds at rank 3, q2 at 2: (1/3 + 1/2 + 0) / 3."""
    train(*of_folder(folder))
    found = json.loads((folder / "x" / "rerank" / "metrics.json").read_text())
    assert found["first_stage"]["mrr@10"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert found["counts"] == {
        "queries": 3, "documents": 7, "dropped": 0, "missing": 1, "without_relevant": 0, "unjudged": 0
    }  # fmt: skip
    ranks = []
    for query in ("q1", "q2"):
        scores = expected_scores(folder, query, list(RUN[query]))
        order = sorted(scores, key=scores.get, reverse=True)
        ranks.append(1 + min(order.index(name) for name in QRELS[query] if name in order))
    assert found["metrics"]["mrr@10"] == pytest.approx(sum(1 / rank for rank in ranks) / 3)
    assert found["settings"]["head"] == "encoder"
    rows = [json.loads(line) for line in (folder / "x" / "rerank" / "per_query.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows] == ["q1", "q2", "q3"]


def test_qrels_of_a_file_and_none(folder):
    (folder / "other.txt").write_text("q1 0 d5 1\n")
    train(*of_folder(folder, f"task.qrels={folder}/other.txt", "task.metrics=[recall@1]", "task.depth=5"))
    assert json.loads((folder / "x" / "rerank" / "metrics.json").read_text())["first_stage"] == {"recall@1": 0.0}
    train(*of_folder(folder, "task.split=null", "task.output=" + str(folder / "unjudged")))
    assert {path.name for path in (folder / "unjudged").iterdir()} == {"run.trec"}


def test_normalize_gives_probabilities_in_the_same_order(folder):
    train(*of_folder(folder, "task.normalize=true"))
    new = read_run(folder / "x" / "rerank" / "run.trec")["q1"]
    plain = expected_scores(folder, "q1", list(RUN["q1"]))
    assert new == pytest.approx({name: 1 / (1 + 2.718281828459045**-score) for name, score in plain.items()}, abs=1e-6)


def test_ids_without_a_text(folder):
    write_run(folder / "first.trec", {**RUN, "q2": {"d1": 3.0, "gone": 2.0}, "lost": {"d1": 1.0}})
    with pytest.raises(ValueError, match=r"2 ids have no text in .*: lost, gone; set task.missing_ids=drop"):
        train(*of_folder(folder))
    train(*of_folder(folder, "task.missing_ids=drop"))
    assert {q: set(d) for q, d in read_run(folder / "x" / "rerank" / "run.trec").items()} == {
        "q1": set(RUN["q1"]),
        "q2": {"d1"},
    }
    assert json.loads((folder / "x" / "rerank" / "metrics.json").read_text())["counts"]["dropped"] == 2


def test_requests_of_both_forms(folder):
    ours = {"query": QUERIES["q1"], "documents": ["worms", "stones", ""]}
    theirs = {
        "query": {"text": QUERIES["q2"], "qid": 7},
        "candidates": [
            {"docid": "a", "score": 2.5, "doc": {"title": "t", "segment": "cats", "body": "not this"}},
            {"docid": 5, "score": 1.5, "doc": "dogs"},
        ],
    }
    (folder / "requests.jsonl").write_text(json.dumps(ours) + "\n" + json.dumps(theirs) + "\n")
    train(*task(folder, f"task.requests={folder}/requests.jsonl"))
    new = read_run(folder / "x" / "rerank" / "run.trec")
    model = rankpo.load(folder / "FINAL", "cpu")
    digest = hashlib.sha256(b"stones").hexdigest()[:16]
    assert new["requests.jsonl:1"][digest] == pytest.approx(model.compute_score((QUERIES["q1"], "stones")), abs=1e-6)
    assert len(new["requests.jsonl:1"]) == 3
    scores = model.compute_score([(QUERIES["q2"], "t cats"), (QUERIES["q2"], "dogs")])
    assert new["7"] == pytest.approx({"a": scores[0], "5": scores[1]}, abs=1e-6)
    first, second = of_file(folder / "requests.jsonl")
    assert first.scores == (-1.0, -2.0, -3.0)  # without scores, the order is the first stage's
    assert second.scores == (2.5, 1.5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[1]", "requests.jsonl:1: "),
        ('{"query": "q"}', r"requests.jsonl:1: needs a list of candidates or documents \(found: query\)"),
        ('{"text": "q", "documents": []}', "needs a query with a text"),
        ('{"query": "q", "documents": ["a", {"docid": "x"}]}', r"candidates\[1\] has no text"),
        ('{"query": "q", "documents": ["a", "a"]}', "appears more than once"),
    ],
)
def test_bad_requests_are_named_by_line(tmp_path, record, message):
    (tmp_path / "requests.jsonl").write_text(record + "\n")
    with pytest.raises(ValueError, match=message):
        list(of_file(tmp_path / "requests.jsonl"))


def test_titles_stand_in_front_of_texts(tmp_path):
    """As they do where a run's documents come from a corpus, in RankLLM's form and in plain ones."""
    documents = [
        {"docid": "a", "doc": {"title": "Moles", "text": "They dig."}},
        {"docid": "b", "title": " Cats ", "text": "They sleep."},
        {"docid": "c", "title": "Stones", "doc": {"contents": "They lie."}},
        {"docid": "d", "doc": {"title": "", "text": "Nothing."}},
        {"docid": "e", "doc": "Text alone."},
    ]
    (tmp_path / "requests.jsonl").write_text(json.dumps({"query": "q", "candidates": documents}) + "\n")
    (request,) = of_file(tmp_path / "requests.jsonl")
    expected = ("Moles They dig.", "Cats They sleep.", "Stones They lie.", "Nothing.", "Text alone.")
    assert request.documents == expected


def test_ids_under_the_names_of_other_tools(tmp_path):
    """A lost id would leave every judgement unmatched."""
    record = {"query": {"_id": 3, "text": "q"}, "documents": [{"_id": "a", "text": "x"}, {"pid": 0, "text": "y"}]}
    (tmp_path / "requests.jsonl").write_text(
        json.dumps(record) + "\n" + json.dumps({**record, "query": "q", "query_id": 4})
    )
    first, second = of_file(tmp_path / "requests.jsonl")
    assert (first.id, first.document_ids, second.id) == ("3", ("a", "0"), "4")


def test_a_query_id_that_stands_twice_is_refused(folder):
    (folder / "requests.jsonl").write_text('{"id": "a", "query": "q", "documents": ["x"]}\n' * 2)
    with pytest.raises(ConfigError, match="the query id 'a' appears more than once"):
        train(*task(folder, f"task.requests={folder}/requests.jsonl"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), r"task.run \(a TREC run, with beir\) or requests .* must be set, and only one"),
        (("task.run=RUN",), "beir must be set"),
        (("task.run=/none", "task.beir=BEIR"), "run: /none does not exist"),
        (("task.run=RUN", "task.beir=BEIR", "task.depth=0"), "depth must be >= 1 or null, got 0"),
        (("task.run=RUN", "task.beir=BEIR", "task.metrics=[ndgc@10]"), "unknown metric 'ndgc@10'"),
        (("task.run=RUN", "task.beir=BEIR", "task.missing_ids=skip"), "missing_ids must be one of error, drop"),
    ],
)
def test_what_cannot_work_is_said_before_weights_load(folder, keys, message):
    given = [key.replace("RUN", f"{folder}/first.trec").replace("BEIR", f"{folder}/beir") for key in keys]
    with pytest.raises(ConfigError, match=message):
        compose(["task=rerank", "model=tiny_bert", "kind=reranker", *given])


def test_an_embedding_model_is_no_reranker(folder):
    given = ("model=tiny_bert", "kind=embedding", f"task.run={folder}/first.trec", f"task.beir={folder}/beir")
    with pytest.raises(ConfigError, match=r"task=rerank needs kind=reranker or kind=listwise, .* is of kind embedding"):
        train("task=rerank", *given, "exp_name=x")


def write_animals(folder):
    """A BEIR folder of 60 documents of three words, a query for each animal, and BM25's run over all of them.

    Of the documents that name the animal, those with the word `yes` are relevant: BM25 cannot tell them apart.
    """
    draw = random.Random(5)
    corpus = {
        f"d{number:02}": f"{' '.join(draw.sample(WORDS, 2))} {draw.choice(('yes', 'no', 'no'))}" for number in range(60)
    }
    queries = {word: f"{word} 7" for word in WORDS}
    named = {word: [name for name, text in corpus.items() if word in text.split()] for word in WORDS}
    qrels = {word: {name: 1 for name in named[word] if corpus[name].endswith("yes")} for word in WORDS}
    write_beir(folder / "animals", corpus.items(), queries.items(), qrels)
    index = Bm25Index(list(corpus.values()), Bm25Settings())
    found = {word: dict(zip(corpus, index.scores(query).tolist(), strict=True)) for word, query in queries.items()}
    run = {word: {name: score for name, score in scores.items() if score > 0} for word, scores in found.items()}
    assert {word: sorted(scores) for word, scores in run.items()} == named
    write_run(folder / "bm25.trec", run, tag="bm25")


def test_a_run_of_bm25_gets_better_from_the_command_line(tmp_path):
    """Trained on other lists of the same rule; both orders are in metrics.json and on the console."""
    write_animals(tmp_path)
    (tmp_path / "lists").mkdir()
    for name, seeds in (("train", range(24)), ("held_out", range(100, 104))):
        write(tmp_path / "lists" / f"{name}.jsonl", [record(seed) for seed in seeds])
    train(*on_lists(tmp_path / "lists", "loss=ranknet", "trainer.epochs=8", "exp_name=c", f"cache_dir={tmp_path}"))
    final = tmp_path / "c" / "FINAL"
    done = launch(
        "task=rerank", "model=tiny_bert", "kind=reranker", f"model.load_from={final}", f"task.run={tmp_path}/bm25.trec",
        f"task.beir={tmp_path}/animals", "exp_name=x", f"cache_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x" / "rerank" / "metrics.json").read_text())
    before, after = found["first_stage"]["ndcg@10"], found["metrics"]["ndcg@10"]
    assert before < 0.75 < 0.95 < after
    assert "first stage" in done.stdout and "reranked" in done.stdout
    new = read_run(tmp_path / "x" / "rerank" / "run.trec")["cat"]
    texts = {item["_id"]: item["text"] for item in map(json.loads, (tmp_path / "animals/corpus.jsonl").open())}
    pairs = [("cat 7", texts[name]) for name in new]
    assert list(new.values()) == pytest.approx(rankpo.load(final, "cpu").compute_score(pairs), abs=1e-5)
