"""The parts of an update with a gradient cache: which of them is computed a second time."""

import numpy as np

from rankpo.trainers.in_batch import largest_last
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
