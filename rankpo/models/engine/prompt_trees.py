"""Prompt trees: packed attention over a prompt and its completions that computes the prompt once.

A tree is a prefix (the prompt) with branches (completions) behind it in one packed row. Prefix tokens attend
causally to each other; a branch's tokens attend to the whole prefix and causally to their own branch. Positions of
every branch continue those of the prefix, so hidden states equal those of prompt + completion as one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rankpo.types import Sequences


class Tree(NamedTuple):
    """prefix: number of tokens. branches: tokens of each branch. rows: rows of the sequences, one per branch;
    a tree of a single row has only a prefix."""

    prefix: int
    branches: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return self.prefix + sum(self.branches)


class PackedTrees:
    """The trees of one packed row and their masks, which layers of equal attention window share."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self.trees = trees
        self.device = device
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def mask(self, number: int, window: int | None) -> Tensor:
        """[branch tokens, prefix + branch tokens] bool, True where attention is allowed."""
        tree = self.trees[number]
        if window is not None and tree.prefix + max(tree.branches) <= window:
            window = None  # The window covers everything.
        if (number, window) not in self._masks:
            self._masks[number, window] = _branch_mask(tree, window).to(self.device, non_blocking=True)
        return self._masks[number, window]


def plant(sequences: Sequences) -> list[Tree]:
    """Builds trees of the sequences with equal prefix in `sequences.prefixes`.

    Trees omit the last token of a sequence, since it predicts no label.
    """
    assert sequences.prefixes is not None
    rows_of: dict[int, list[int]] = {}
    for row, number in enumerate(sequences.prefixes[:, 0].tolist()):
        rows_of.setdefault(number, []).append(row)
    shared, lengths = sequences.prefixes[:, 1].tolist(), sequences.lengths.tolist()
    trees = []
    for rows in rows_of.values():
        if len(rows) == 1:
            trees.append(Tree(lengths[rows[0]] - 1, (), tuple(rows)))
        else:
            branches = tuple(lengths[row] - 1 - shared[row] for row in rows)
            trees.append(Tree(shared[rows[0]], branches, tuple(rows)))
    return trees


def places(tree: Tree, row: int, start: int) -> Tensor:
    """Returns the positions of a row's tokens, except the last, in a packed row in which the tree begins at `start`."""
    number = tree.rows.index(row)
    prefix = torch.arange(start, start + tree.prefix)
    if not tree.branches:
        return prefix
    begin = start + tree.prefix + sum(tree.branches[:number])
    return torch.cat([prefix, torch.arange(begin, begin + tree.branches[number])])


def token_ids(tree: Tree, sequences: Sequences, ids: Tensor, starts: Sequence[int]) -> list[Tensor]:
    """The tree's tokens: prefix, then branch after branch. starts: of each row in `ids` [S]."""
    begin = starts[tree.rows[0]]
    pieces = [ids[begin : begin + tree.prefix]]
    for row, length in zip(tree.rows, tree.branches, strict=False):
        begin = starts[row] + tree.prefix
        pieces.append(ids[begin : begin + length])
    return pieces


def tree_arguments(trees: Sequence[Tree], device: torch.device, position_offset: int) -> dict[str, object]:
    """Keyword arguments of a packed forward pass over trees."""
    positions = []
    for tree in trees:
        positions.append(torch.arange(tree.prefix))
        positions += [torch.arange(tree.prefix, tree.prefix + length) for length in tree.branches]
    return {
        "position_ids": (torch.cat(positions) + position_offset)[None].to(device, non_blocking=True),
        "trees": PackedTrees(trees, device),
    }


def tree_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTrees,
    prefix_mask: Any,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """[1, S, heads, d] attention within each tree. query: [1, heads, S, d]; key, value: [1, key heads, S, d].

    prefix_mask: `packing.window_mask`, for prefixes longer than a sliding window.
    """
    grouped = key.shape[1] != query.shape[1]
    sizes = [size for tree in packed.trees for size in (tree.prefix, sum(tree.branches))]
    parts = [tensor.split(sizes, dim=2) for tensor in (query, key, value)]
    outputs = []
    for number, tree in enumerate(packed.trees):
        q, k, v = (part[2 * number] for part in parts)
        mask = prefix_mask(tree.prefix, window, True, query.device)
        causal = mask is None and tree.prefix > 1
        outputs.append(
            scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scaling, enable_gqa=grouped)
        )
        if not sum(tree.branches):
            continue
        q, own_k, own_v = (part[2 * number + 1] for part in parts)
        k, v = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
        mask = packed.mask(number, window)
        outputs.append(scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=grouped))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _branch_mask(tree: Tree, window: int | None) -> Tensor:
    branch = torch.repeat_interleave(torch.arange(len(tree.branches)), torch.tensor(tree.branches))  # [b]
    own = torch.cat([torch.arange(tree.prefix, tree.prefix + length) for length in tree.branches])  # [b] positions
    position = torch.cat([torch.arange(tree.prefix), own])
    of = torch.cat([torch.full((tree.prefix,), -1), branch])  # Prefix tokens belong to all branches.
    distance = own[:, None] - position[None, :]
    allowed = ((of == -1) | (of == branch[:, None])) & (distance >= 0)
    return allowed if window is None else allowed & (distance < window)
