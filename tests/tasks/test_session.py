"""Sessions of tasks: precision, processes, kinds that cannot serve, and runs whose losses added a head."""

import json

import numpy as np
import pytest
import torch

from rankpo.data.readers.trec import read_run
from rankpo.errors import ConfigError
from rankpo.retrieval.embeddings import Embeddings
from rankpo.retrieval.shards import EncodingError
from rankpo.tasks.base import Task
from rankpo.tasks.vector_models import vector_model
from tests.runs import TINY, compose, launch, reset, train

BF16 = "trainer.precision=bf16"
TEXTS = ("datasets=[toy_pairs]", "task.corpus=pool")


def options(folder, name, *more):
    return (*TINY, *TEXTS, "task=encode", f"cache_dir={folder}", f"exp_name={name}", *more)


def vectors(folder, name):
    found = Embeddings(folder / name / "embeddings")
    return found.rows(np.arange(len(found)))


def test_encode_works_in_the_precision_of_the_trainer(tmp_path):
    """The vectors are those of the model under autocast, and a folder never mixes two precisions."""
    train(*options(tmp_path, "plain"))
    train(*options(tmp_path, "half", BF16))
    exact, rounded = vectors(tmp_path, "plain"), vectors(tmp_path, "half")
    assert 1e-5 < np.abs(exact - rounded).max() < 0.05
    reset()
    experiment = compose(options(tmp_path, "x"))
    model = vector_model(experiment, Task().open(experiment))
    texts = list(dict.fromkeys(t for d in experiment.datasets for e in d.examples() for t in e.candidates))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.encode(texts)
    np.testing.assert_allclose(rounded, expected, atol=2e-3)
    with pytest.raises(EncodingError, match="precision"):
        train(*options(tmp_path, "plain", BF16))


def search(folder, name, *more):
    index = f"task.index={folder}/plain/embeddings"
    train(
        *TINY,
        "datasets=[toy_pairs]",
        "task=search",
        "task.queries=pool",
        index,
        f"cache_dir={folder}",
        f"exp_name={name}",
        *more,
    )
    return read_run(folder / name / "search/run.trec")


def test_search_encodes_its_queries_in_the_precision(tmp_path):
    """Also where the queries' vectors in another precision are in the cache."""
    train(*options(tmp_path, "plain"))
    exact, rounded = search(tmp_path, "a"), search(tmp_path, "b", BF16)
    assert exact != rounded and search(tmp_path, "c") == exact
    for query, hits in exact.items():
        common = set(hits) & set(rounded[query])
        assert {name: rounded[query][name] for name in common} == pytest.approx({n: hits[n] for n in common}, abs=0.05)


def test_mining_encodes_in_the_precision(tmp_path):
    found = {}
    for name, keys in (("a", ()), ("b", (BF16,))):
        data = ("datasets=[toy_contrastive]", "mining=dense", f"cache_dir={tmp_path}", f"exp_name={name}")
        train(*TINY, "task=mine", *data, f"task.output={tmp_path}/{name}.jsonl", *keys)
        lines = (tmp_path / f"{name}.meta.jsonl").read_text()
        found[name] = lines
    assert found["a"] != found["b"]


SETS = ("eval_datasets=[toy_pairs]", "datasets=[toy_pairs]", "loss=rankpo")


def test_evaluation_of_a_run_in_its_precision_gives_what_training_measured(tmp_path):
    train(*TINY, *SETS, BF16, f"cache_dir={tmp_path}", "exp_name=r", "trainer.save_every=2")
    logged = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    margins = [line["eval/toy_pairs/margin"] for line in logged if "eval/toy_pairs/margin" in line]
    of_run = ("task=evaluate", f"task.run={tmp_path}/r", "eval_datasets=[toy_pairs]", f"cache_dir={tmp_path}")
    rows = {}
    for name, keys in (("half", (BF16,)), ("plain", ())):
        reset()
        experiment = compose([*TINY, *of_run, f"exp_name={name}", *keys])
        rows[name] = experiment.task(experiment)
    assert rows["half"][0]["toy_pairs/margin"] == pytest.approx(margins[0], abs=1e-7)
    assert rows["half"][-1]["toy_pairs/margin"] == pytest.approx(margins[-1], abs=1e-7)
    assert rows["plain"][-1]["toy_pairs/margin"] != rows["half"][-1]["toy_pairs/margin"]


def test_annotate_is_one_process():
    done = launch("task=annotate", *TINY, "datasets=[toy_pairs]", "task.dry_run=true", processes=2)
    assert done.returncode != 0
    assert "task=annotate runs in one process only; start it with python launch.py" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task=encode", "kind=reranker", "datasets=[toy_pairs]"), "task=encode needs kind=embedding, and this model is of kind reranker; add kind=embedding"),
        (("task=search", "kind=reranker", "task.index=nowhere", "datasets=[toy_pairs]"), "task=search needs kind=embedding"),
        (("task=sample", "kind=embedding", "datasets=[toy_chat]"), "task=sample needs kind=causal_lm"),
        (("task=mine", "kind=reranker", "mining=dense", "datasets=[toy_contrastive]"), "mining by vectors needs kind=embedding"),
    ],
)  # fmt: skip
def test_a_kind_that_cannot_serve_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train("model=tiny_bert", *overrides, f"cache_dir={tmp_path}", "exp_name=x", f"task.output={tmp_path}/o.jsonl")
    assert len(caught.value.problems) == 1


CHAT = ("datasets=[toy_chat]", "trainer.batch_size=4", "optimizer.lr=1e-3", "trainer.max_steps=4", "trainer.save_every=2", "trainer.keep_checkpoints=9")  # fmt: skip


@pytest.mark.parametrize("loss", ["ppo", "bradley-terry"])
def test_runs_whose_loss_adds_a_head_are_evaluated_and_exported(tmp_path, loss):
    """Start, checkpoints and FINAL: FINAL's numbers are those of the last checkpoint, and those that training logged."""
    sets = ("eval_datasets=[toy_chat]", f"cache_dir={tmp_path}")
    train(f"loss={loss}", "model=tiny_pythia", *CHAT, *sets, "exp_name=r")
    experiment = compose(["task=evaluate", "model=tiny_bert", f"task.run={tmp_path}/r", *sets, "exp_name=e"])
    rows = experiment.task(experiment)
    assert [row["model"] for row in rows] == ["start", "step-2", "step-4", "FINAL"]
    logged = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    margins = [line["eval/toy_chat/margin"] for line in logged if "eval/toy_chat/margin" in line]
    assert rows[0]["toy_chat/margin"] == pytest.approx(margins[0], abs=1e-5)
    assert rows[-1]["toy_chat/margin"] == pytest.approx(rows[-2]["toy_chat/margin"], abs=1e-5)
    assert rows[-1]["toy_chat/margin"] == pytest.approx(margins[-1], abs=1e-5)
    for checkpoint in ("FINAL", "step-4", "step-2"):
        of_export = ("task=export", "model=tiny_bert", f"task.run={tmp_path}/r", f"task.checkpoint={checkpoint}")
        train(*of_export, f"cache_dir={tmp_path}", f"exp_name=x-{checkpoint}")
        assert (tmp_path / f"x-{checkpoint}/FINAL/config.json").exists()
