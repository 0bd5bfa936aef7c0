"""Several datasets in one run: a loss each, whole updates of one of them, the same curve however the run is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.data.loaders.turns import Turns
from rankpo.errors import ConfigError
from tests.runs import TINY, curve, final_weights, launch, train, trainer_of

WORDS = "red blue green fast slow cat dog house river stone light dark sky tree apple bread music paper glass iron"


def texts(seed: int, count: int, length: int) -> list[str]:
    """Random texts, all different."""
    words = np.array(WORDS.split())
    drawn = words[np.random.default_rng(seed).integers(len(words), size=(count, length))]
    return [f"{' '.join(row)} {seed}{number}" for number, row in enumerate(drawn)]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def three(folder: Path) -> tuple[str, ...]:
    """Questions with negatives, scored pairs of sentences, and preferences: contrastive, cosent and rankpo."""
    queries, answers, wrong = texts(1, 12, 4), texts(2, 12, 6), texts(3, 12, 6)
    write(
        folder / "qa.jsonl",
        [{"query": q, "pos": [a], "neg": [n]} for q, a, n in zip(queries, answers, wrong, strict=True)],
    )
    left, right = texts(4, 8, 5), texts(5, 8, 5)
    scored = zip(left, right, np.linspace(0, 1, 8).tolist(), strict=True)
    write(folder / "sts.jsonl", [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in scored])
    asked, better, worse = texts(6, 6, 4), texts(7, 6, 6), texts(8, 6, 6)
    judged = zip(asked, better, worse, strict=True)
    write(
        folder / "pairs.jsonl",
        [{"query": q, "passage1": a, "passage2": b, "preferred": "A"} for q, a, b in judged],
    )
    return (
        *(*TINY, "loss=contrastive", "loss.temperature=0.1", f"cache_dir={folder}"),
        "datasets=[qa:jsonl,sts:jsonl,pairs:jsonl]",
        *(f"datasets.{name}.path={folder}/{name}.jsonl" for name in ("qa", "sts", "pairs")),
        *("datasets.sts.loss=cosent", "datasets.pairs.loss=rankpo", "datasets.pairs.temperature=0.5"),
        "datasets.qa.query_prompt='find: '",
    )


def test_a_curve_depends_on_neither_max_tokens_nor_processes_nor_an_interruption(tmp_path):
    keys = (*three(tmp_path), "trainer.epochs=2")
    train(*keys, "exp_name=whole")
    train(*keys, "exp_name=parts", "trainer.max_tokens=60")
    launched = launch(*keys, "exp_name=two", "trainer.max_tokens=100", processes=2)
    assert launched.returncode == 0, launched.stderr
    first = trainer_of(*keys, "exp_name=cut", "trainer.save_every=5")
    first.total_steps = 7  # It ends behind its checkpoint, as a process that is killed.
    first.watch.total_steps = 100
    first.watch.evaluate = first.finish = lambda *_: {}
    first.train()
    train(*keys, "exp_name=cut", "trainer.save_every=5", "resume=auto", "allow_changes=true")
    whole = curve(tmp_path / "whole")
    assert len(whole) == 2 * (3 + 2 + 2) and all(map(math.isfinite, whole))
    for name in ("parts", "two"):
        assert_close(curve(tmp_path / name), whole, rtol=1e-5, atol=1e-6)
        for part in ("qa", "sts", "pairs"):
            own = curve(tmp_path / name, f"train/{part}/loss")
            assert_close(own, curve(tmp_path / "whole", f"train/{part}/loss"), rtol=1e-5, atol=1e-6)
        assert_close(final_weights(tmp_path / name), final_weights(tmp_path / "whole"), rtol=1e-4, atol=1e-5)
    assert_close(final_weights(tmp_path / "cut"), final_weights(tmp_path / "whole"), rtol=0, atol=0)


def test_each_update_has_the_loss_of_its_dataset(tmp_path):
    trainer = trainer_of(*three(tmp_path), "exp_name=own")
    losses = {part.loader.table.meta["datasets"][0]: type(part.loss).__name__ for part in trainer.parts}
    assert losses == {"qa": "ContrastiveLoss", "sts": "CoSENTLoss", "pairs": "RankPOLoss"}
    assert trainer.parts[2].loss.temperature == 0.5 and trainer.loss.temperature == 0.1
    numbers = [trainer.prepare(step).number for step in range(trainer.loader.updates_per_epoch)]
    assert sorted(numbers) == [0, 0, 0, 1, 1, 2, 2] and numbers != sorted(numbers)


def test_a_dataset_of_several_is_shown_and_measured_as_alone(tmp_path):
    keys = three(tmp_path)
    together = trainer_of(*keys, "exp_name=all").parts[1]
    keys = (*TINY, "loss=cosent", "datasets=[sts:jsonl]", f"datasets.sts.path={tmp_path}/sts.jsonl")
    alone = trainer_of(*keys, f"cache_dir={tmp_path}")
    assert [group.id for group in together.loader.groups(1)] == [group.id for group in alone.loader.groups(1)]
    assert together.loss_value(together.prepare(0)) == pytest.approx(alone.loss_value(alone.prepare(0)), rel=1e-6)


ORDERS = {
    "homogeneous": [8, 4, 2],
    "proportional": [8, 4, 2],
    "round_robin": [5, 5, 5],  # 14 updates in rounds of three
    "temperature": [6, 5, 3],  # shares of the square roots of 8, 4 and 2
}


@pytest.mark.parametrize("order", ORDERS)
def test_every_epoch_gives_each_dataset_its_share_and_goes_on_where_the_last_one_ended(order):
    turns = Turns(updates=(8, 4, 2), order=order, temperature=0.5, seed=1)
    epochs = [[turns.update(step) for step in range(n * turns.per_epoch, (n + 1) * turns.per_epoch)] for n in (0, 1)]
    for epoch in epochs:
        assert [sum(dataset == number for dataset, _ in epoch) for number in range(3)] == ORDERS[order]
    for number in range(3):
        own = [position for epoch in epochs for dataset, position in epoch if dataset == number]
        assert own == list(range(2 * ORDERS[order][number]))
    drawn = [[dataset for dataset, _ in epoch] for epoch in epochs]
    assert (drawn[0] != drawn[1]) == (order != "proportional")  # where only the order of equal places is drawn


def test_round_robin_and_proportional_spread_the_datasets():
    turns = Turns(updates=(8, 4, 2), order="round_robin", temperature=0.5, seed=1)
    for start in range(0, turns.per_epoch, 3):
        assert {turns.update(step)[0] for step in range(start, start + 3)} == {0, 1, 2}
    spread = Turns(updates=(8, 4, 2), order="proportional", temperature=0.5, seed=1)
    drawn = [spread.update(step)[0] for step in range(14)]
    assert sorted([drawn[:7].count(number) for number in range(3)]) == [1, 2, 4]


@pytest.mark.parametrize("temperature, shares", [(1.0, (8, 4, 2)), (0.0, (5, 5, 4))])
def test_temperature_goes_from_equal_shares_to_sizes(temperature, shares):
    turns = Turns(updates=(8, 4, 2), order="temperature", temperature=temperature, seed=1)
    assert sorted(turns.shares) == sorted(shares)


@pytest.mark.parametrize(
    "override, message",
    [
        ("datasets.sts.loss=nonsense", "datasets.sts.loss=nonsense: "),
        ("datasets.sts.negatives=own", "CoSENTLoss has no key negatives"),
        ("datasets.sts.num_negatives=3", "ListwiseDataLoader has no key num_negatives"),
        ("dataloader.mixing=mixed", "datasets.sts.loss applies to one of them"),
        ("datasets.typo.loss=cosent", "datasets.typo is not a dataset of this run, which has qa, sts, pairs"),
        ("datasets.sts.loss=tdpo", "needs token log-probabilities"),
    ],
)
def test_keys_of_datasets_are_checked_before_anything_is_loaded(tmp_path, override, message):
    keys = three(tmp_path)
    with pytest.raises(ConfigError) as caught:
        compose([*keys, override])
    assert message in str(caught.value)


def test_files_of_a_folder_apart(tmp_path):
    """FlagEmbedding's folder: each file in updates of its own, and one of them without negatives of others."""
    for name in ("a", "b_no_in_batch_neg"):
        queries, answers = texts(len(name), 6, 4), texts(len(name) + 10, 6, 6)
        records = [
            {"query": q, "pos": [a], "neg": [f"{a} not"], "type": "normal"}
            for q, a in zip(queries, answers, strict=True)
        ]
        write(tmp_path / f"{name}.jsonl", records)
    keys = (*TINY, "loss=contrastive", f"datasets.jsonl.path={tmp_path}", "datasets=[jsonl]", f"cache_dir={tmp_path}/c")
    trainer = trainer_of(*keys, "datasets.jsonl.by_file=true", "datasets.jsonl.num_negatives=1")
    assert [part.loader.table.meta["datasets"] for part in trainer.parts] == [
        ["jsonl_a"],
        ["jsonl_b_no_in_batch_neg"],
    ]
    for step in range(trainer.loader.updates_per_epoch):
        update = trainer.prepare(step)
        alone = update.update.batch.own_negatives
        assert (alone is not None and bool(alone.all())) == (update.number == 1)
    with pytest.raises(ConfigError, match="by_file=true: Jobs does not read files"):
        compose([*TINY, "loss=contrastive", "datasets=[jobs]", "datasets.jobs.by_file=true"])
