"""Data from which a loss learns nothing: refused before any weight is loaded, or said where it is a part of it."""

from __future__ import annotations

import json

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.losses.distillation import MarginMSELoss
from rankpo.runs import processes
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.assemble import assemble

LISTS = ("softmax", "listnet", "listmle", "plistmle", "lambdaloss", "lambdarank", "ranknet", "adr_mse", "plackett_luce")


def path_of(tmp_path, rows) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def alone(count, texts=2):
    """Queries with positives and no negatives."""
    return [{"query": f"q {n}", "positives": [f"p {n} {i}" for i in range(texts)]} for n in range(count)]


def said_by(tmp_path, rows, *overrides):
    """What is said until the trainer is ready, and the trainer."""
    options = ("model=tiny_bert", "datasets=[jsonl]", f"datasets.jsonl.path={path_of(tmp_path, rows)}", "exp_name=x")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    experiment = compose((*options, f"cache_dir={tmp_path / 'cache'}", *overrides))
    logger = MetricsLogger(main=False)
    lines: list[str] = []
    logger.say = lines.append  # type: ignore[method-assign]
    return lines, assemble(experiment, processes.make_accelerator("fp32"), logger)


class Nothing(MarginMSELoss):
    """A loss that is 0 whatever the scores are."""

    def of_lists(self, scores, target, labels):
        return 0 * scores.sum(1)


@pytest.mark.parametrize("loss", LISTS)
def test_lists_without_negatives_are_refused(tmp_path, loss):
    with pytest.raises(
        ConfigError, match=r"no list has a training signal for \w+: there is one candidate, or all labels are"
    ):
        said_by(tmp_path, alone(5), f"loss={loss}")


def test_own_negatives_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no list has a training signal for ContrastiveLoss: loss\.negatives=own"):
        said_by(tmp_path, alone(5), "loss=contrastive", "loss.negatives=own")


def test_one_query_an_update_without_negatives(tmp_path):
    with pytest.raises(ConfigError, match=r"with trainer\.batch_size=1, no query of any update has a negative"):
        said_by(tmp_path, alone(5), "loss=contrastive", "trainer.batch_size=1")
    rows = [{**row, "negatives": ["n"]} for row in alone(5)]
    assert not [line for line in said_by(tmp_path, rows, "trainer.batch_size=1")[0] if "training signal" in line]


@pytest.mark.parametrize(
    ("labels", "size", "said"),
    [((0.5,) * 6, 6, None), ((0.1, 0.9) * 3, 1, None), ((0.5,) * 4 + (0.1, 0.9), 3, "1 of 2 updates"), ((0.1, 0.9) * 3, 6, "")],
)  # fmt: skip
def test_scored_pairs_with_one_label(tmp_path, labels, size, said):
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "score": label} for n, label in enumerate(labels)]
    options = ("loss=cosent", f"trainer.batch_size={size}", "seed=3")
    if said is None:
        with pytest.raises(
            ConfigError, match=r"no update has a training signal for CoSENTLoss: with trainer\.batch_size"
        ):
            said_by(tmp_path, rows, *options)
        return
    lines = [line for line in said_by(tmp_path, rows, *options)[0] if "training signal" in line]
    assert len(lines) == bool(said) and all(line.startswith(said) for line in lines)


def test_known_positives_of_every_query_are_no_negatives(tmp_path):
    """Two rows of one query: each one's positive is known to be the other's too."""
    rows = [{"query": "q", "positives": ["a"]}, {"query": "q", "positives": ["b"]}]
    with pytest.raises(ConfigError, match="no update has a training signal for ContrastiveLoss"):
        said_by(tmp_path, rows, "loss=contrastive", "trainer.batch_size=2")


def test_what_a_part_lacks_is_counted(tmp_path):
    rows = [*alone(3), {"query": "r", "positives": ["a"], "negatives": ["b"]}]
    lines, _ = said_by(tmp_path, rows, "loss=listnet")
    assert any(
        line.startswith("3 of the 4 lists have no training signal for ListNetLoss: there is one candidate")
        for line in lines
    )


def test_the_last_update_of_an_epoch(tmp_path):
    lines, _ = said_by(tmp_path, alone(9), "loss=contrastive", "trainer.batch_size=4")
    assert any(
        line == "the last update of an epoch has no training signal for ContrastiveLoss: with 9 examples and "
        "trainer.batch_size=4, it has one query without negatives"
        for line in lines
    )
    assert not [line for line in said_by(tmp_path, alone(8), "trainer.batch_size=4")[0] if "training signal" in line]


def test_losses_that_learn_from_lists_of_one_are_left_alone(tmp_path):
    """Pointwise losses learn from any label."""
    lines, _ = said_by(tmp_path, alone(4), "loss=pointwise")
    assert not [line for line in lines if "training signal" in line]


def test_a_loss_of_exactly_0_is_said(tmp_path):
    """Nothing that is known before training could tell, such as a hinge that every example satisfies."""
    rows = [{"query": f"q{n}", "positives": ["a"], "negatives": ["b"]} for n in range(8)]
    options = ("loss=margin_mse", "loss.target=relevance", "trainer.max_steps=4", "trainer.batch_size=2")
    lines, trainer = said_by(tmp_path, rows, *options)
    trainer.loss = Nothing(target="relevance")
    trainer.train()
    assert len([line for line in lines if "the loss is exactly 0 in the first 3 updates" in line]) == 1
    lines, trainer = said_by(tmp_path, rows, *options, "exp_name=y")
    trainer.train()
    assert not [line for line in lines if "exactly 0" in line]
