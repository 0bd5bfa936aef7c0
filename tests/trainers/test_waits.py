"""No hidden waits: the forward and backward passes of an update on the meta device, whose tensors have no values to read.

On a GPU, reading a value of a tensor makes the CPU wait until the GPU has computed it. An update reads the losses of its
micro-batches and the norm of the gradient once, at its end, since a value that is not finite stops the run.
"""

from contextlib import nullcontext

import pytest
import torch

from rankpo.models.engine.dry_run import Pass, activation_bytes
from tests.recipes import EVERY
from tests.runs import trainer_of

QUICK = ("rankpo", "dpo, tokens", "sft", "reranker")
MORE = (
    *("bco", "cpo", "exo", "ipo", "nca", "simpo", "slic", "sppo", "csft", "ra-dpo", "tdpo", "own negatives"),
    *("hinge", "confidence", "orpo, tokens", "bradley-terry, tokens"),
)


@pytest.mark.parametrize("recipe", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_an_update_reads_no_value_of_the_device(recipe, tmp_path, monkeypatch):
    trainer = trainer_of(*EVERY[recipe], f"cache_dir={tmp_path}", "trainer.max_tokens=100")
    trainer.policy.train()
    update = trainer.prepare(0)
    assert len(update.micro_batches) > 1
    trainer.policy.to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # It does not know this device.
    trainer.backward(trainer.begin(update))
    assert [value.is_meta for value in trainer.values] == [True] * len(update.micro_batches)
    assert all(parameter.grad is not None for parameter in trainer.policy.parameters() if parameter.requires_grad)


def test_the_device_shows_a_read(tmp_path, monkeypatch):
    """The test above can fail."""
    trainer = trainer_of(*EVERY["rankpo"], f"cache_dir={tmp_path}")
    update = trainer.prepare(0)
    trainer.policy.to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())
    original = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda batch: float(original(batch).losses.sum()))
    with pytest.raises(RuntimeError, match="meta"):
        trainer.backward(update)


@pytest.mark.parametrize("recipe", ["late interaction", "contrastive"])
def test_a_pass_over_texts_reads_no_value_of_the_device(recipe, tmp_path):
    """Fake tensors have no values either."""
    trainer = trainer_of(*EVERY[recipe], f"cache_dir={tmp_path}")
    texts = trainer.policy.inputs.collate(trainer.loader.table, trainer.loader.groups(0)).sequences
    assert activation_bytes(trainer.policy.train(), texts, Pass()) > 0
