"""A run goes on, and counts as finished, only from the data and weights it began with; overwrite=true removes only ours."""

import json
import shutil
from pathlib import Path

import pytest

from rankpo.errors import StorageError
from rankpo.runs import origin
from tests.runs import TINY, train
from tests.sweeps import swept

STEPS = ("trainer.max_steps=4", "trainer.save_every=2")


def records(path: Path, word: str = "wrong", count: int = 8) -> str:
    """A file of records for contrastive training; `word` is part of each negative."""
    lines = [
        json.dumps({"query": f"lake {n}", "positives": [f"right {n}"], "negatives": [f"{word} {n}"]})
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def options(folder: Path, *more: str) -> list[str]:
    data = ("datasets=[jsonl]", f"datasets.jsonl.path={folder / 'data.jsonl'}")
    return [*TINY, "loss=contrastive", *data, *STEPS, f"cache_dir={folder}", "exp_name=run", *more]


def cut_short(folder: Path) -> None:
    """The run as a kill after its second update left it."""
    run = folder / "run"
    shutil.rmtree(run / "FINAL")
    shutil.rmtree(run / "checkpoints" / "step-4")
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 2]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    records(tmp_path / "data.jsonl")
    train(*options(tmp_path))
    return tmp_path


def test_origin_names_data_and_versions(trained):
    found = json.loads((trained / "run" / "origin.json").read_text())
    assert list(found["datasets"]) == ["jsonl"] and found["model"] == {}  # random weights follow from the config
    assert set(found["versions"]) == {"rankpo", "torch", "transformers"}


@pytest.mark.parametrize("unfinished", [True, False])
@pytest.mark.parametrize("change", ["negatives", "fewer", "more"])
def test_other_data_is_refused_by_name(trained, unfinished, change):
    if unfinished:
        cut_short(trained)
    word, count = ("other", 8) if change == "negatives" else ("wrong", 7 if change == "fewer" else 9)
    records(trained / "data.jsonl", word, count)
    with pytest.raises(
        StorageError, match=r"begun with another content of datasets\.jsonl; set overwrite=true .*allow_changes"
    ):
        train(*options(trained, "resume=auto"))


def test_allowed_changes_are_said(trained, capsys):
    cut_short(trained)
    records(trained / "data.jsonl", "other")
    train(*options(trained, "resume=auto", "allow_changes=true"))
    assert "warning:" in (said := capsys.readouterr().err) and "another content of datasets.jsonl" in said
    assert (trained / "run" / "FINAL").is_dir()


def test_other_start_weights_and_tokenizers_are_refused(trained):
    """Stage one is trained again between a kill of stage two and its continuation."""
    stage = [f"model.load_from={trained / 'one' / 'FINAL'}", "exp_name=run", "overwrite=true"]
    train(*options(trained, "exp_name=one", "overwrite=true"))
    base = [item for item in options(trained) if not item.startswith("exp_name")]
    train(*base, *stage)
    cut_short(trained)
    train(*options(trained, "exp_name=one", "overwrite=true", "seed=7"))
    with pytest.raises(StorageError, match=r"another content of model\.weights;"):
        train(*base, *stage[:2], "resume=auto")


def test_other_versions_are_said(trained, capsys):
    cut_short(trained)
    path = trained / "run" / "origin.json"
    saved = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}
    origin.note(trained / "run", {**saved, "versions": {**saved["versions"], "torch": "1.0"}})
    train(*options(trained, "resume=auto"))
    assert "begun under other versions: torch 1.0 -> " in capsys.readouterr().err


def test_a_sweep_runs_a_job_again_whose_data_changed(tmp_path, monkeypatch, capsys):
    records(tmp_path / "data.jsonl")
    arguments = [item for item in options(tmp_path) if not item.startswith("exp_name")]
    sweep = [*arguments, "exp_name=sweep", "seed=1,2"]
    swept(monkeypatch, *sweep)
    capsys.readouterr()
    swept(monkeypatch, *sweep)
    assert capsys.readouterr().err.count("finished before") == 2
    records(tmp_path / "data.jsonl", "other")
    swept(monkeypatch, *sweep)
    said = capsys.readouterr().err
    assert "finished before" not in said and "another content of datasets.jsonl" in said


def test_overwriting_leaves_the_files_of_others(trained):
    run = trained / "run"
    foreign = [
        run / "notes.txt",
        run / "FINAL" / "mine.md",
        run / "checkpoints" / "old" / "paper.pdf",
        run / "evaluation" / "x",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    train(*options(trained, "overwrite=true", "seed=3"))
    assert [path.read_text() for path in foreign] == ["mine"] * 4
    assert json.loads((run / "config.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    "made", ["checkpoints/model.bin", "evaluation/results.csv", "FINAL/paper.pdf", "tensorboard/log"]
)
def test_a_folder_that_never_held_a_run_is_not_overwritten(tmp_path, made):
    records(tmp_path / "data.jsonl")
    foreign = tmp_path / "run" / made
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    (tmp_path / "run" / "config.json").write_text('{"their": "config"}')
    try:
        train(*options(tmp_path, "overwrite=true"))
    except StorageError as error:
        assert "holds files and no run" in str(error)
    assert foreign.read_text() == "mine"


def test_encoding_removes_embeddings_only(tmp_path):
    corpus = tmp_path / "out" / "corpus.jsonl"
    corpus.parent.mkdir()
    corpus.write_text("".join(json.dumps({"_id": str(n), "text": f"text {n}"}) + "\n" for n in range(4)))
    encode = [
        *TINY[:4],
        "task=encode",
        f"task.corpus={corpus}",
        f"task.output={corpus.parent}",
        f"cache_dir={tmp_path}",
    ]
    with pytest.raises(RuntimeError, match="holds files other than embeddings"):
        train(*encode, "overwrite=true")
    train(*encode)
    (corpus.parent / "notes.txt").write_text("mine")
    train(*encode, "overwrite=true", "seed=5")
    assert corpus.exists() and (corpus.parent / "notes.txt").read_text() == "mine"
    assert (corpus.parent / "shard-00000.npy").exists()
