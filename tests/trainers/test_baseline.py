"""What all jobs of a sweep share is computed once: the start model's evaluation and its reference scores."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from rankpo.data.generated.jobs import write_jobs
from rankpo.evaluation.lists import ListwiseEvaluator
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.evaluation.retrieval import RetrievalEvaluator
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.runs.computed_once import must_compute
from tests.runs import RANKPO, curve, train

EVALUATED = (*RANKPO, "eval_datasets=[toy_pairs]", "trainer.max_steps=1", "trainer.eval_every=null")


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the evaluators whose `evaluate` was called."""
    calls: list[str] = []
    for kind in (PreferenceEvaluator, RetrievalEvaluator, ListwiseEvaluator):
        plain = kind.evaluate

        def evaluate(self, model, plain=plain):
            calls.append(self.name)
            return plain(self, model)

        monkeypatch.setattr(kind, "evaluate", evaluate)
    return calls


def run(tmp_path: Path, name: str, *options: str) -> dict[str, float]:
    """The first evaluation of a run."""
    train(*options, f"exp_name={name}", f"cache_dir={tmp_path}")
    line = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]
    record = json.loads(line)
    assert record["step"] == 0
    return {key: value for key, value in record.items() if key != "time"}


def test_jobs_of_a_sweep_measure_their_start_once(tmp_path, counted):
    """Two calls in the first run, before and after its update; one in each of the others."""
    first = run(tmp_path, "a", *EVALUATED, "loss.beta=1")
    assert counted == ["toy_pairs"] * 2
    assert run(tmp_path, "b", *EVALUATED, "loss.beta=2", "optimizer.lr=0.2") == first
    assert counted == ["toy_pairs"] * 3
    assert curve(tmp_path / "a", "eval/toy_pairs/margin")[1] != curve(tmp_path / "b", "eval/toy_pairs/margin")[1]
    assert len(list((tmp_path / "baselines").glob("*.json"))) == 1


@pytest.mark.parametrize(
    "other",
    [
        "seed=7",
        "model.query_max_length=32",
        "model.pooling=cls",
        "trainer.precision=bf16",
        "eval_datasets.toy_pairs.num_posts=4",
    ],
)
def test_another_start_or_other_data_are_measured(tmp_path, counted, other):
    """Another seed: the random weights of tiny_bert come from it."""
    run(tmp_path, "a", *EVALUATED)
    run(tmp_path, "b", *EVALUATED, other)
    assert counted == ["toy_pairs"] * 4


def test_other_metrics_and_judgements_are_measured(tmp_path, counted):
    write_jobs(tmp_path / "jobs", num_profiles=40, num_posts=6)
    beir = tmp_path / "jobs" / "test"
    options = (*RANKPO, "eval_datasets=[beir]", f"eval_datasets.beir.path={beir}", "trainer.max_steps=1")
    run(tmp_path, "a", *options)
    run(tmp_path, "b", *options)
    assert len(counted) == 3
    run(tmp_path, "c", *options, "task.metrics=[ndcg@5]")
    assert len(counted) == 5
    run(tmp_path, "d", *options, "eval_datasets.beir.relevant_from=2")
    assert len(counted) == 7


def test_a_run_without_a_first_evaluation_has_none(tmp_path, counted):
    train(*EVALUATED, "trainer.eval_at_start=false", "exp_name=a", f"cache_dir={tmp_path}")
    assert counted == ["toy_pairs"]
    assert not (tmp_path / "baselines").exists()


def test_reference_scores_are_computed_once(tmp_path, monkeypatch):
    calls = []
    plain = EmbeddingModel.slot_scores
    monkeypatch.setattr(EmbeddingModel, "slot_scores", lambda *arguments: calls.append(1) or plain(*arguments))
    for beta in (1, 2):
        train(
            *RANKPO, "loss.reference_free=false", f"loss.beta={beta}", "trainer.max_steps=1",
            f"exp_name={beta}", f"cache_dir={tmp_path}",
        )  # fmt: skip
    assert len(calls) == 1


def test_of_several_at_once_one_computes(tmp_path, monkeypatch):
    """Four begin together; the first takes its time and the others find what it made."""
    monkeypatch.setattr("rankpo.runs.computed_once.POLL_SECONDS", 0.01)
    path = tmp_path / "folder" / "value"
    said: list[str] = []
    computed: list[bool] = []

    def job() -> None:
        with must_compute(path, said.append) as ours:
            computed.append(ours)
            if ours:
                time.sleep(0.2)
                path.write_text("1")
            assert path.read_text() == "1"

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == [False, False, False, True]
    assert said == [f"another job computes {path}; waiting for it"] * 3


def test_who_fails_leaves_it_to_the_next(tmp_path):
    path = tmp_path / "value"
    with pytest.raises(ZeroDivisionError), must_compute(path, print) as ours:
        assert ours
        raise ZeroDivisionError
    with must_compute(path, print) as ours:
        assert ours
