"""task=evaluate: one model, and a run from its start to FINAL."""

from __future__ import annotations

import json

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers.trec import read_run
from rankpo.errors import ConfigError, StorageError
from rankpo.tasks.work.evaluate import retention
from tests.runs import train

SETS = (
    "eval_datasets=[jobs_test,toy_pairs]",
    "eval_datasets.jobs_test.num_profiles=60",
    "eval_datasets.jobs_test.num_posts=8",
)
TRAINING = ("loss=rankpo", "model=tiny_bert", "datasets=[toy_pairs]", "trainer.batch_size=8", "optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    train(*TRAINING, "trainer.save_every=1", "trainer.keep_checkpoints=9", f"cache_dir={folder}", "exp_name=a", *SETS)
    return folder / "a"


def rows_of(*overrides):
    experiment = compose(["task=evaluate", "model=tiny_bert", *overrides])
    return experiment.task(experiment)


def logged(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/jobs_test/ndcg@10" in line]


def test_a_run_is_walked_from_start_to_final(run):
    rows = rows_of(f"task.run={run}", f"cache_dir={run.parent}", "exp_name=e", *SETS)
    assert [row["model"] for row in rows] == ["start", "step-1", "step-2", "step-3", "FINAL"]
    first, last = logged(run)[0], logged(run)[-1]
    for name in ("jobs_test/ndcg@10", "toy_pairs/accuracy"):
        assert rows[0][name] == pytest.approx(first[f"eval/{name}"])
        assert rows[-1][name] == rows[-2][name] == pytest.approx(last[f"eval/{name}"])
    assert rows[-1]["retention/jobs_test/ndcg@10"] == pytest.approx(
        last["eval/jobs_test/ndcg@10"] / first["eval/jobs_test/ndcg@10"]
    )
    assert not any(name.startswith("retention/toy_pairs") for name in rows[-1])


def test_top_k_documents_are_kept_and_more_where_a_metric_looks_deeper(run):
    given = (f"model.load_from={run}/FINAL", f"cache_dir={run.parent}", "exp_name=k", *SETS)
    for top_k, kept in ((3, 20), (40, 40)):
        rows_of(*given, f"task.top_k={top_k}", "task.metrics=[ndcg@20]")
        written = read_run(run.parent / "k" / "evaluation" / "model" / "jobs_test" / "run.trec")
        assert {len(documents) for documents in written.values()} == {kept}


def test_what_is_written_is_what_was_measured(run):
    (row,) = rows_of(f"model.load_from={run}/FINAL", f"cache_dir={run.parent}", "exp_name=one", *SETS)
    folder = run.parent / "one" / "evaluation" / "model" / "jobs_test"
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["ndcg@10"] == row["jobs_test/ndcg@10"]
    assert len(read_run(folder / "run.trec")) == len((folder / "per_query.jsonl").read_text().splitlines())


def test_rankpos_own_variants_have_their_own_names(run):
    (row,) = rows_of(
        f"model.load_from={run}/FINAL", f"cache_dir={run.parent}", "exp_name=two", "task.rankpo=true", *SETS
    )
    assert "jobs_test/rankpo/ndcg@20" in row


def test_a_saved_model_is_compared_with_the_start_that_is_named(run, tmp_path, capsys):
    """Untrained weights are the run's own start: the ratio is that of the run's table."""
    walked = rows_of(f"task.run={run}", f"cache_dir={run.parent}", "exp_name=e", *SETS)
    train(
        "task=export", f"task.run={run}", "task.checkpoint=step-1", f"task.output={tmp_path}", f"cache_dir={tmp_path}"
    )
    capsys.readouterr()
    start, model = rows_of(
        f"model.load_from={run}/FINAL", f"task.start={tmp_path}/FINAL", f"cache_dir={run.parent}", "exp_name=s", *SETS
    )
    name = "jobs_test/ndcg@10"
    assert (start["model"], model["model"]) == ("start", "model")
    assert model[f"retention/{name}"] == pytest.approx(walked[-1][name] / walked[1][name], rel=1e-5)
    assert "without retention" not in capsys.readouterr().err


def test_agreement_alone_says_how_to_see_what_it_cost(run, capsys):
    here = (f"model.load_from={run}/FINAL", f"cache_dir={run.parent}", "exp_name=w")
    rows_of(*here, *SETS)
    assert "set task.start to the start model of the training" in capsys.readouterr().err
    rows_of(*here, "eval_datasets=[toy_pairs]")
    assert "add a dataset with a corpus and relevance judgements" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="start must be null with run"):
        rows_of(f"task.run={run}", "task.start=x/y", *SETS)


def test_a_sweep_is_one_table(run, tmp_path):
    """FINAL of every job, by its folder, against the model that it started from."""
    import shutil

    for job in ("beta=1", "deep/beta=2"):
        shutil.copytree(run, tmp_path / "sweep" / job, ignore=shutil.ignore_patterns("checkpoints"))
    rows = rows_of(f"task.run={tmp_path}/sweep", f"cache_dir={tmp_path}", f"task.output={tmp_path}/out", *SETS)
    assert [row["model"] for row in rows] == ["beta=1/FINAL", "deep/beta=2/FINAL"]
    whole = rows_of(f"task.run={run}", f"cache_dir={run.parent}", "exp_name=e", *SETS)[-1]
    for row in rows:
        assert {**row, "model": "FINAL"} == whole and "retention/jobs_test/ndcg@10" in row
    assert (tmp_path / "out" / "deep/beta=2" / "FINAL" / "jobs_test" / "run.trec").is_file()


def test_retention_by_hand():
    row, start = {"d/ndcg@10": 0.3, "d/mrr@10": 0.2}, {"d/ndcg@10": 0.6, "d/mrr@10": 0.0}
    assert retention(row, start, ["d/ndcg@10", "d/mrr@10"]) == {"retention/d/ndcg@10": 0.5}


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    import shutil

    copy = tmp_path / "a"
    shutil.copytree(run, copy)
    weights = copy / "checkpoints" / "step-2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(StorageError, match=r"step-2 is damaged"):
        rows_of(f"task.run={copy}", f"cache_dir={tmp_path}", *SETS)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run with checkpoints"):
        rows_of(f"task.run={tmp_path}", f"cache_dir={tmp_path}", *SETS)
    with pytest.raises(ConfigError, match="eval_datasets is empty"):
        rows_of(f"cache_dir={tmp_path}")
