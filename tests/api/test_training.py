"""rankpo.train and rankpo.build: runs in one process, one after another, with objects of the caller."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import rankpo
from rankpo.api.overrides import overrides_of, quoted, text_of
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.losses.base import Loss
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.types import Example, Labels, LossOutput
from tests.runs import ROOT, curve, final_weights, train

RECORDS = [
    {"query": f"job {number}", "positives": [f"profile {number}"], "negatives": [f"text {number + 1}", "another"]}
    for number in range(8)
]
PAIRS = [{"query": f"job {n}", "passage1": f"profile {n}", "passage2": "another", "preferred": "A"} for n in range(4)]
CHAT = [{"prompt": f"What is {number}?", "chosen": "A number.", "rejected": "No idea."} for number in range(4)]
TINY = {"model.random.num_hidden_layers": 1, "batch_size": 4, "log_every": 1}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Notes(rankpo.Callback):
    """Notes what it is told."""

    def __init__(self, last: int | None = None) -> None:
        self.told: list[tuple[str, int]] = []
        self.metrics: dict[str, float] = {}
        self.last = last

    def started(self, run):
        self.told.append(("started", run.step))

    def logged(self, run, metrics):
        self.told.append(("logged", run.step))
        assert metrics["loss"] > 0
        if run.step == self.last:
            run.stop()

    def evaluated(self, run, metrics):
        self.told.append(("evaluated", run.step))
        self.metrics = dict(metrics)

    def saved(self, run, folder):
        assert (folder / "state.json").is_file()
        self.told.append(("saved", run.step))

    def ended(self, run, metrics):
        assert (run.folder / "FINAL" / "model.safetensors").is_file() and metrics == self.metrics
        self.told.append(("ended", run.step))


def test_kinds_one_after_another_in_one_process():
    """Stage one, stage two on its model, a reranker and a language model; each call is a run of its own."""
    mine = Accelerator(cpu=True)
    first = rankpo.train("tiny_bert", "contrastive", RECORDS, **TINY)
    assert first.encode_query("job 1").shape == (32,)
    second = rankpo.train(first, "rankpo", PAIRS, batch_size=4, beta=2.0, lr=1e-3)
    saved = json.loads(Path("runs/rankpo-1/config.json").read_text())
    assert (saved["model"]["load_from"], saved["loss"]["beta"]) == ("runs/contrastive-1/FINAL", 2.0)
    assert not (second.encode("job 1") == first.encode("job 1")).all()
    reranker = rankpo.train("tiny_bert", "softmax", RECORDS, **TINY)
    assert {item["corpus_id"] for item in reranker.rank("job 1", ["a", "b"])} == {0, 1}
    chat = rankpo.train("tiny_pythia", "dpo", CHAT, batch_size=2)
    assert chat.logps(["What is 1?"], ["A number."]).shape == (1,)
    again = rankpo.train("tiny_bert", "contrastive", RECORDS, **TINY)
    assert torch.equal(torch.from_numpy(again.encode("x")), torch.from_numpy(first.encode("x")))
    assert {path.name for path in Path("runs").iterdir()} == {
        "contrastive-1",
        "contrastive-2",
        "rankpo-1",
        "softmax-1",
        "dpo-1",
    }
    assert mine.state.device.type == "cpu"  # an Accelerator of the caller works as before


def test_python_and_the_command_line_train_the_same(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    rankpo.train("tiny_bert", "contrastive", RECORDS, exp_name="python", epochs=2, **TINY)
    options = ("model=tiny_bert", "model.random.num_hidden_layers=1", "trainer.batch_size=4", "trainer.epochs=2")
    data = ("datasets=jsonl", "datasets.jsonl.name=train", f"datasets.jsonl.path={tmp_path}/train.jsonl")
    train("loss=contrastive", *options, *data, "trainer.log_every=1", "exp_name=shell")
    assert curve(Path("runs/python")) == curve(Path("runs/shell"))
    for name, tensor in final_weights(Path("runs/python")).items():
        assert torch.equal(tensor, final_weights(Path("runs/shell"))[name])


def test_a_callback_is_told_of_everything():
    notes = Notes()
    rankpo.train("tiny_bert", "contrastive", RECORDS, eval_data=RECORDS[:3], callbacks=[notes], save_every=2, **TINY)
    expected = ["started 0", "evaluated 0", "logged 1", "logged 2", "evaluated 2", "saved 2", "ended 2"]
    assert [f"{what} {step}" for what, step in notes.told] == expected
    assert "dev/ndcg@10" in notes.metrics
    stopping = Notes(last=1)
    rankpo.train("tiny_bert", "contrastive", RECORDS, callbacks=[stopping], epochs=5, **TINY)
    assert stopping.told == [("started", 0), ("logged", 1), ("ended", 1)]


@dataclass(frozen=True, kw_only=True)
class SquaredLoss(Loss):
    """The squared distance of scores from labels: a loss of a user, on lists."""

    scale: float = 1.0

    def __call__(self, scores: torch.Tensor, labels: Labels, reference: torch.Tensor | None = None) -> LossOutput:
        distance = (scores - labels.relevance).square() * labels.mask
        return LossOutput(losses=self.scale * distance.sum(1), metrics={})


def test_a_loss_of_ones_own():
    """As a class, as an object with values, and below a loss of ours, whose kind and trainer it takes."""
    model = rankpo.train("tiny_bert", SquaredLoss, RECORDS, **TINY)
    assert model.kind == "reranker"
    rankpo.train("tiny_bert", SquaredLoss(scale=3.0), RECORDS, kind="embedding", exp_name="mine", **TINY)
    saved = json.loads(Path("runs/mine/config.json").read_text())
    assert saved["loss"] == {"_target_": f"{__name__}.SquaredLoss", "scale": 3.0}

    @dataclass(frozen=True, kw_only=True)
    class Cooler(ContrastiveLoss):
        temperature: float = 0.5

    cooler = rankpo.build(model="tiny_bert", loss=Cooler, data=RECORDS, **TINY)
    assert cooler.experiment.model.kind == "embedding" and cooler.trainer.loss.temperature == 0.5


class Letters:
    """A dataset of a user."""

    name = "letters"

    def fingerprint(self) -> str:
        return "letters-1"

    def examples(self) -> Iterator[Example]:
        for letter in "abcdefgh":
            yield Example(id=letter, query=letter, candidates=(letter * 2, "zz"), relevance=(1.0, 0.0))


def test_a_dataset_of_ones_own():
    rankpo.train("tiny_bert", "contrastive", Letters(), eval_data=Letters(), exp_name="own", **TINY)
    config = json.loads(Path("runs/own/config.json").read_text())
    assert config["datasets"] == {"letters": {"class": "Letters", "fingerprint": "letters-1"}}
    with pytest.raises(Exception, match="holds a finished run"):
        rankpo.train("tiny_bert", "contrastive", Letters(), exp_name="own", **TINY)


def test_what_is_changed_before_training_counts():
    training = rankpo.build(["model=tiny_bert", "datasets=[toy_contrastive]", "trainer.max_steps=1"])
    assert {"policy", "loss", "loader", "optimizer", "schedule", "evaluators"} <= set(vars(training.trainer))
    training.trainer.loss = ContrastiveLoss(temperature=9.0)
    training.train()
    warm = curve(training.experiment.run_dir)
    rankpo.train("tiny_bert", data="toy_contrastive", max_steps=1, exp_name="cold")
    assert warm != curve(Path("runs/cold"))


def test_tables_of_other_libraries():
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    rows = [{"anchor": record["query"], "positive": record["positives"][0]} for record in RECORDS]
    for data in (datasets.Dataset.from_list(rows), pandas.DataFrame(rows)):
        training = rankpo.build(model="tiny_bert", loss="contrastive", data=data, **TINY)
        assert len(training.trainer.loader.items) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": RECORDS, "epoch": 1}, "there is no key epoch; in rankpo it is trainer.epochs"),
        ({"data": RECORDS, "num_train_epochs": 1}, "in rankpo it is trainer.epochs"),
        ({"data": RECORDS, "trainer": {"epoch": 1}}, r"trainer\.epoch: .*it is trainer\.epochs"),
        ({"data": RECORDS, "loss": "contrastiv"}, "did you mean contrastive"),
        ({"data": RECORDS, "loss": 3}, "loss must be an option of config/loss"),
        ({"data": RECORDS, "model": "tiny_brt"}, "did you mean tiny_bert"),
        ({"data": 3}, "datasets does not accept int"),
        ({"data": []}, "datasets is empty"),
        ({"data": ["a"]}, r"datasets\[0\] must be a mapping"),
        ({"data": [{"query": object()}]}, r"datasets\[0\]: a value of type object is not JSON"),
        ({}, "datasets is not set"),
        ({"data": RECORDS, "task": "evaluate", "eval_data": "toy_pairs"}, "does not train"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        rankpo.train(**{"model": "tiny_bert", "loss": "contrastive", **arguments})


@pytest.mark.parametrize(
    "text", ["it's", "a,b=c", "a\\", "\\'", "\\\\", "", "null", "1.5", "{x}", "ünï ☂", "$HOME", "a:b"]
)
def test_texts_survive_the_grammar_of_overrides(text):
    assert compose([f"model.name_or_path={quoted(text)}"]).model.name_or_path == text


def test_keywords_are_keys_of_the_config():
    keys = {
        "epochs": 2,
        "lr": 0.1,
        "kind": "reranker",
        "loss.temperature": 0.5,
        "trainer": {"batch_size": 3},
        "seed": 7,
    }
    given = overrides_of(keys, ["loss=contrastive", "model=tiny_bert"])
    expected = {
        "kind=reranker",
        "trainer.epochs=2",
        "optimizer.lr=0.1",
        "loss.temperature=0.5",
        "trainer.batch_size=3",
        "seed=7",
    }
    assert set(given) == expected
    assert text_of([1, None, True, "a b", 1e-05]) == "[1,null,true,'a b',1e-05]"


def test_importing_rankpo_is_light():
    code = (
        "import rankpo, sys; print([name for name in ('torch', 'numpy', 'omegaconf', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
