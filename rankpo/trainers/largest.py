"""The largest group of the training data, which a forward pass holds whole, and the line about what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.loaders.ranking import DataLoader
from rankpo.models.inputs import Inputs

if TYPE_CHECKING:
    from rankpo.trainers.basic import BasicTrainer

LOOKED_AT = 64  # Groups of the longest examples: a group may draw a part of its example's candidates.


def largest_group(inputs: Inputs, loader: DataLoader, budget: int) -> int:
    """Tokens of the largest group among those of the longest examples; 0 if no example can have more than `budget`."""
    table = loader.table
    lengths, counts = table.lengths, np.diff(table.offsets)
    if (int(counts.max(initial=0)) + 1) * (int(lengths.max(initial=0)) + LOOKED_AT) <= budget:
        return 0
    ends = np.concatenate([[0], np.cumsum(lengths[np.asarray(table.candidates)])])
    totals = (ends[table.offsets[1:]] - ends[table.offsets[:-1]])[loader.items[:, 0]]
    chosen = np.argsort(-totals, kind="stable")[:LOOKED_AT]
    return int(inputs.costs(table, [loader.group(0, loader.items[number]) for number in chosen]).max(initial=0))


def remark(trainer: BasicTrainer) -> str | None:
    """One line if some group exceeds max_tokens and is held whole: its tokens, what they need, and the keys to change."""
    tokens, budget = trainer.largest_whole_group(), trainer.settings.token_budget
    if tokens <= budget:
        return None
    sharded = trainer.strategy.sharded
    by = "split parameters (FSDP2, ZeRO-3)" if sharded else f"models of kind {trainer.policy.kind}"
    needs = f"about {tokens / budget:.1f} times the activations of max_tokens"
    if trainer.memory is not None:
        needs = f"{trainer.memory.activations(tokens) / 1e9:.2g} GB of activations"
    remedies = [
        "dataloader.group_size or dataloader.num_negatives, if the loader has one",
        "the maximum lengths of model",
    ]
    other = "; one process or DDP computes it in parts" if sharded and trainer.policy.computes_in_parts else ""
    return (
        f"the largest example has {tokens:,} tokens, and max_tokens is {budget:,}: with {by} one forward pass holds it whole, "
        f"which needs {needs}; lower {' or '.join(remedies)} if that does not fit{other}"
    )
