"""The parts of an update with a gradient cache: which of them is computed a second time."""

import numpy as np
from torch.testing import assert_close

from rankpo.trainers import in_batch
from rankpo.trainers.in_batch import largest_last
from tests.models.test_kept_attention import Calls
from tests.runs import CONTRASTIVE, trainer_of


def test_the_largest_part_is_last():
    lengths = np.array([9, 8, 2, 3, 1])
    parts = [np.array([0, 1]), np.array([2, 3]), np.array([4]), np.array([], dtype=np.int64)]
    assert [part.tolist() for part in largest_last(parts, lengths)] == [[2, 3], [4], [], [0, 1]]
    equal = [np.array([0]), np.array([1, 4])]
    assert [part.tolist() for part in largest_last(equal, lengths)] == [[1, 4], [0]]


def test_only_the_smaller_part_is_computed_twice(tmp_path):
    """An update of two parts, of about 9 tenths and 1 tenth of its tokens."""
    options = (*CONTRASTIVE, "trainer.batch_size=8", f"cache_dir={tmp_path}")
    whole = trainer_of(*options).prepare(0).num_tokens
    trainer = trainer_of(*options, f"trainer.max_tokens={whole * 9 // 10}")
    update = trainer.prepare(0)
    sizes = [int(update.batch.sequences.lengths[part].sum()) for part in update.parts]
    assert len(sizes) == 2 and sizes[1] > 5 * sizes[0]
    seen = []
    trainer.policy.register_forward_hook(lambda module, given, output: seen.append(given[0].num_tokens))
    trainer.policy.train()
    trainer.train_step(update)
    assert seen == [sizes[0], sizes[1], sizes[0]]


def cached_update(tmp_path, monkeypatch, kept, *options):
    """The gradients of an update in four parts or more, and its calls of attention's kernel. kept: times max_tokens."""
    monkeypatch.setattr(in_batch, "LONG", 1)
    monkeypatch.setattr(in_batch, "KEPT", kept)
    common = (*CONTRASTIVE, "trainer.batch_size=8", f"cache_dir={tmp_path}", *options)
    trainer = trainer_of(*common, f"trainer.max_tokens={trainer_of(*common).prepare(0).num_tokens // 4}")
    update = trainer.prepare(0)
    assert len(update.parts) >= 4
    trainer.policy.train()
    with Calls() as calls:
        trainer.backward(update)
    return {name: weight.grad for name, weight in trainer.policy.named_parameters() if weight.grad is not None}, calls


def test_kept_attention_changes_no_gradient(tmp_path, monkeypatch):
    twice, computed = cached_update(tmp_path, monkeypatch, 0)
    once, kept = cached_update(tmp_path, monkeypatch, 8)
    some, limited = cached_update(tmp_path, monkeypatch, 1)
    assert kept.forward < limited.forward < computed.forward
    assert kept.backward == limited.backward == computed.backward
    for name, gradient in twice.items():
        assert_close(once[name], gradient, atol=1e-6, rtol=1e-5)
        assert_close(some[name], gradient, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_keeps_no_attention(tmp_path, monkeypatch):
    options = ("trainer.gradient_checkpointing=true",)
    twice, computed = cached_update(tmp_path, monkeypatch, 0, *options)
    once, kept = cached_update(tmp_path, monkeypatch, 8, *options)
    assert kept.forward == computed.forward
    for name, gradient in twice.items():
        assert_close(once[name], gradient, atol=0, rtol=0)


def test_short_texts_keep_no_attention(tmp_path):
    trainer = trainer_of(*CONTRASTIVE, "trainer.batch_size=8", f"cache_dir={tmp_path}", "trainer.max_tokens=64")
    assert trainer.prepare(0).attention_tokens == 4 * 64
    assert all(part.attention is None for part in in_batch._parts(trainer.prepare(0)))
