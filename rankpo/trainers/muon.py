"""Muon for the matrices inside a network, and AdamW for its embeddings, heads, biases and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def hidden_matrices(model: nn.Module, head: nn.Module | None) -> set[int]:
    """The ids of the parameters for Muon: two-dimensional weights, except embeddings and the output head.

    head: the layer of the model that gives logits over the vocabulary, or None.
    """
    apart = {id(p) for m in model.modules() if isinstance(m, EMBEDDINGS) or m is head for p in m.parameters()}
    return {id(p) for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in apart}


class Muon(torch.optim.Optimizer):
    """torch's Muon (https://kellerjordan.github.io/posts/muon) and AdamW as one optimizer.

    A parameter group with muon=True has matrices for Muon; all others are for AdamW. Both take the learning rate of their
    group, since Muon's updates are scaled to the root mean square of AdamW's (https://arxiv.org/abs/2502.16982). Muon
    needs whole matrices, so that it does not work with FSDP and DeepSpeed, which divide them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """momentum: Muon's. betas, eps: AdamW's."""
        super().__init__(params, {"muon": False, "lr": lr, "weight_decay": weight_decay})
        self._inner: list[tuple[bool, torch.optim.Optimizer]] = []
        if chosen := self._groups(True):
            made = torch.optim.Muon(_copies(chosen), lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            self._add(True, made)
        if others := self._groups(False):
            self._add(False, torch.optim.AdamW(_copies(others), lr=lr, betas=(betas[0], betas[1]), eps=eps))

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    def _add(self, muon: bool, inner: torch.optim.Optimizer) -> None:
        for own, made in zip(self._groups(muon), inner.param_groups, strict=True):
            own.update({name: value for name, value in made.items() if name not in own})
        self._inner.append((muon, inner))

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        for muon, inner in self._inner:
            # Loading a state replaces these objects, so the two optimizers take them anew for each step.
            inner.param_groups, inner.state = self._groups(muon), self.state
            inner.step()
        return loss


def _copies(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in groups]
