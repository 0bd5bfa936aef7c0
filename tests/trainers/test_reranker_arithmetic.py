"""Arithmetic that published training loops of rerankers get wrong: accumulation, last batches, dropout, small rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rankpo.types import LossOutput
from tests.runs import curve, final_weights, train, trainer_of
from tests.trainers.test_reranker import PAIRS, SMALL, on_lists, record, write


def test_every_micro_batch_counts(tmp_path):
    """Four micro-batches of equal weight with gradients 1, 10, 100, 1000 at one number: (1 + 10 + 100 + 1000)/4 = 277.75.

    RAG-Retrieval keeps the last micro-batch alone, 250.
    """
    trainer = trainer_of(*PAIRS, "loss=dpo", "trainer.max_tokens=1", f"cache_dir={tmp_path}")
    bias = trainer.policy.base.classifier.bias
    gradients = iter((1.0, 10.0, 100.0, 1000.0))

    def compute_loss(batch):
        return LossOutput(next(gradients) * bias.expand(len(batch.ids)), None)

    trainer.compute_loss = compute_loss
    update = trainer.prepare(0)
    assert len(update.micro_batches) == 4
    trainer.optimizer.zero_grad()
    trainer.backward(update)
    assert float(bias.grad) == pytest.approx(277.75)


@pytest.mark.parametrize(
    ("loss", "keys", "left"),
    [
        ("pointwise", ("dataloader.group_size=1",), 1),
        ("softmax", (), 1),
        ("dpo", ("dataloader.pairs_per_example=1",), 1),
    ],
)
def test_a_last_update_of_one_pair_one_list_or_one_comparison(tmp_path, loss, keys, left):
    """Defect 6. Three lists of six documents: 18 pairs and 3 lists; 17 or 2 of them in the first update."""
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists" / "train.jsonl", [record(seed) for seed in range(3)])
    write(tmp_path / "lists" / "held_out.jsonl", [record(9)])
    size = 17 if loss == "pointwise" else 2
    keys = (*keys, f"loss={loss}", f"trainer.batch_size={size}", f"cache_dir={tmp_path}")
    trainer = trainer_of(*on_lists(tmp_path / "lists", *keys))
    assert trainer.total_steps == 2 * trainer.settings.epochs
    for step in range(2):
        update = trainer.prepare(step)
        trainer.train_step(update)
    assert update.num_queries == left
    assert 0 < trainer.running.result(lambda value: value)["loss"] < 10


def test_dropout_is_off_in_evaluation_and_on_again_behind_it(tmp_path):
    """Defect 14: the state of a dropout layer in every forward pass of a run that evaluates after each update."""
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists" / "train.jsonl", [record(seed) for seed in range(8)])
    write(tmp_path / "lists" / "held_out.jsonl", [record(9)])
    keys = ("loss=pointwise", "trainer.dropout=true", "trainer.eval_every=1", "trainer.max_steps=2", "exp_name=x")
    trainer = trainer_of(*on_lists(tmp_path / "lists", *keys, f"cache_dir={tmp_path}"))
    seen: list[tuple[bool, bool]] = []
    layer = next(module for module in trainer.policy.modules() if isinstance(module, nn.Dropout) and module.p > 0)
    layer.register_forward_hook(lambda module, given, found: seen.append((torch.is_grad_enabled(), module.training)))
    trainer.train()
    order = [learning for number, (learning, _) in enumerate(seen) if not number or seen[number - 1][0] != learning]
    assert order[:5] == [False, True, False, True, False]  # before the first update, and behind each
    assert all(learning == dropping for learning, dropping in seen)


def test_a_rate_of_half_a_hundred_thousandth_moves_weights_in_bfloat16(tmp_path):
    """Defect 11. Adam's first step is the rate for every weight; rounded to bfloat16 a weight of 0.02 would stay."""
    keys = ("loss=dpo", "trainer.precision=bf16", "optimizer=adamw", "optimizer.lr=5e-6", "optimizer.weight_decay=0")
    trainer = trainer_of(*PAIRS, *keys, f"cache_dir={tmp_path}")
    before = {name: value.detach().clone() for name, value in trainer.policy.named_parameters()}
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    (key,) = (name for name in before if name.endswith("classifier.weight"))
    now = dict(trainer.policy.named_parameters())[key].detach()
    assert now.dtype == torch.float32
    assert float((now - before[key]).abs().median()) == pytest.approx(5e-6, rel=0.05)
    assert (before[key].bfloat16() - 5e-6 == before[key].bfloat16()).float().mean() > 0.6


THREE = ((0, 1, 2), (3, 4, 5))  # updates of the first two epochs


def test_a_run_that_goes_on_draws_the_groups_that_it_would_have_drawn(tmp_path):
    """Defects 12 and 13: lists dealt into groups, stopped at a checkpoint in the second epoch and continued."""
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists" / "train.jsonl", [record(seed) for seed in range(6)])
    write(tmp_path / "lists" / "held_out.jsonl", [record(9)])
    keys = (
        "loss=ranknet",
        "dataloader.group_size=3",
        "trainer.epochs=3",
        "trainer.save_every=5",
        "trainer.eval_every=null",
    )
    common = on_lists(tmp_path / "lists", *keys, f"cache_dir={tmp_path}")
    train(*common, "exp_name=whole")
    stopped = trainer_of(*common, "exp_name=parts")
    drawn = [{frozenset(g.slots.tolist()) for step in steps for g in stopped.loader.groups(step)} for steps in THREE]
    assert drawn[0] != drawn[1]
    assert all(sorted(slot for group in epoch for slot in group) == list(range(36)) for epoch in drawn)
    stop_after(stopped, 5)
    train(*common, "exp_name=parts", "resume=auto")
    whole, rest = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert len(whole) == 9 and rest == whole[5:]
    assert_close(final_weights(tmp_path / "parts"), final_weights(tmp_path / "whole"), rtol=0, atol=0)


class StoppedError(Exception):
    """What ends a run between two updates."""


def stop_after(trainer, steps):
    own = trainer.train_step

    def step(update):
        if trainer.state.step == steps:
            raise StoppedError
        own(update)

    trainer.train_step = step
    with pytest.raises(StoppedError):
        trainer.train()


def test_a_misspelt_label_is_an_error(tmp_path):
    """Defect 29: RAG-Retrieval B reads 0 for every label."""
    rows = [{"query": "q", "content": text, "label": n} for n, text in enumerate("ab")]
    path = write(tmp_path / "flat.jsonl", [*rows, {"query": "q", "content": "c", "lable": 1}])
    keys = (
        "model=tiny_bert",
        "kind=reranker",
        *SMALL,
        "loss=pointwise",
        "datasets=[jsonl]",
        f"datasets.jsonl.path={path}",
    )
    with pytest.raises(Exception, match=r"flat.jsonl:3: .*label"):
        trainer_of(*keys, f"cache_dir={tmp_path}")
