"""Datasets of the hub by local stand-ins, and files behind addresses: the same records as from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers.records import Records
from rankpo.errors import ConfigError
from tests.runs import TINY, curve, train

datasets = pytest.importorskip("datasets")
ROWS = [{"query": f"query {n}", "pos": [f"answer {n}"], "neg": [f"wrong {n}", f"bad {n}"]} for n in range(12)]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKPO_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def lines(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def read(dataset) -> list[tuple]:
    return [(e.query, e.candidates, e.relevant) for e in dataset.examples()]


def repository(tmp_path: Path) -> Path:
    """A folder as a dataset's repository on the hub: a card with two configs."""
    folder = tmp_path / "repository"
    lines(folder / "plain" / "train.jsonl")
    lines(
        folder / "triplet" / "a.jsonl", [{"anchor": f"a {n}", "positive": f"p {n}", "negative": "n"} for n in range(5)]
    )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files: plain/train.jsonl\n- config_name: triplet\n"
        "  data_files: triplet/*.jsonl\n---\n"
    )
    return folder


def test_a_repository_a_saved_copy_and_a_stream_give_the_records_of_files(tmp_path):
    folder = repository(tmp_path)
    files = read(Records(name="f", path=str(folder / "plain" / "train.jsonl")))
    hub = Records(name=str(folder), config="plain", split="train")
    assert hub.name == "repository" and read(hub) == files and len(files) == 12
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(str(parquet / "train-00000-of-00001.parquet"))
    assert read(Records(name=str(parquet), split="train")) == files
    saved = tmp_path / "saved"
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(saved))
    assert read(Records(name=str(saved), split="dev", alias="own")) == files
    assert read(Records(name=str(folder), config="plain", split="train", streaming=True)) == files
    triplets = Records(name=str(folder), config="triplet", split="train", limit=3)
    assert read(triplets)[0] == ("a 0", ("p 0", "n"), (True, False)) and len(read(triplets)) == 3
    assert triplets.report.order[0].startswith("anchor")
    # what was read is its content: another limit or another config is another dataset
    assert len({item.fingerprint() for item in (hub, triplets, Records(name=str(saved), split="dev"))}) == 3


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"split": "validation"}, "cannot be loaded"),
        ({"config": "nonsense", "split": "train"}, "cannot be loaded"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, keys, message):
    records = Records(name=str(repository(tmp_path)), **{"config": "plain", **keys})
    with pytest.raises(ValueError, match=message) as caught:
        list(records.examples())
    assert "\n" not in str(caught.value) and "datasets.repository" in str(caught.value)


def test_keys_of_the_hub_are_refused_with_files(tmp_path):
    path = str(lines(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="split=train is for a dataset of the hub"):
        Records(name="a", path=path, split="train")
    with pytest.raises(ValueError, match="split is not set"):
        Records(name="a/b")
    with pytest.raises(ConfigError, match=r"datasets.hub.name is not set"):
        compose([*TINY, "loss=contrastive", "datasets=[hub]"])


def test_a_run_on_a_hub_dataset_is_that_on_its_files(tmp_path):
    folder = repository(tmp_path)
    keys = (*TINY, "loss=contrastive", f"cache_dir={tmp_path}/cache")
    train(*keys, "exp_name=f", "datasets=[jsonl]", f"datasets.jsonl.path={folder}/plain/train.jsonl")
    hub = ("datasets=[nq:hub]", f"datasets.nq.name={folder}", "datasets.nq.config=plain")
    train(*keys, "exp_name=h", *hub)
    config = json.loads((tmp_path / "cache" / "h" / "config.json").read_text())
    assert config["datasets"]["nq"]["alias"] == "nq"
    assert len(curve(tmp_path / "cache" / "h")) == len(curve(tmp_path / "cache" / "f")) == 3


def test_files_behind_addresses(tmp_path):
    """In memory and as file://; names keep their meaning, and a changed file is fetched again."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("set_no_in_batch_neg/a.jsonl", "set/b.jsonl", "set/note.txt"):
        with memory.open(f"/bucket/{name}", "w") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in ROWS))
    files = read(Records(name="f", path=str(lines(tmp_path / "x.jsonl"))))
    assert read(Records(name="m", path="memory://bucket/set/b.jsonl")) == files
    assert read(Records(name="m", path="memory://bucket/set")) == files
    assert read(Records(name="m", path=f"file://{tmp_path}/x.jsonl")) == files
    apart = Records(name="m", path=["memory://bucket/set_no_in_batch_neg/*.jsonl"])
    assert all(example.own_negatives for example in apart.examples())
    before = apart.fingerprint()
    with memory.open("/bucket/set_no_in_batch_neg/a.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    again = Records(name="m", path=["memory://bucket/set_no_in_batch_neg/*.jsonl"])
    assert len(read(again)) == 1 and again.fingerprint() != before
    with pytest.raises(FileNotFoundError, match="path: memory://bucket/nothing"):
        Records(name="m", path="memory://bucket/nothing")
    with pytest.raises(ValueError, match=r"path: nosuch://x/y.jsonl cannot be opened"):
        Records(name="m", path="nosuch://x/y.jsonl")


def test_without_a_connection_earlier_copies_serve(tmp_path, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/kept/a.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    first = read(Records(name="m", path="memory://kept/a.jsonl"))

    def cut(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(type(memory), "isfile", cut)
    assert read(Records(name="m", path="memory://kept/a.jsonl")) == first
    with pytest.raises(ValueError, match="cannot be reached: OSError: no network"):
        Records(name="m", path="memory://kept/other.jsonl")
