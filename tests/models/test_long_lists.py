"""A list of candidates longer than max_tokens: computed in parts, with the scores and gradients of the whole."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tests.runs import trainer_of

RERANKER = ("model=tiny_bert", "kind=reranker", "model.random.num_hidden_layers=1", "datasets=[toy_contrastive]")
LIMIT = 90


def test_parts_give_the_scores_and_gradients_of_the_whole(tmp_path, monkeypatch):
    trainer = trainer_of(*RERANKER, "loss=softmax", f"trainer.max_tokens={LIMIT}", f"cache_dir={tmp_path}")
    model = trainer.policy
    assert model.part_tokens == LIMIT
    sequences = model.inputs.sequences_of([("how deep", f"moles dig {'deep ' * (n % 7)}{n}") for n in range(23)])
    weights = torch.linspace(-1, 1, 23)
    sizes, logits = [], model._logits
    monkeypatch.setattr(model, "_logits", lambda part: sizes.append(part.num_tokens) or logits(part))
    found = {}
    for limit in (None, LIMIT):
        model.zero_grad()
        model.part_tokens = limit
        scores = model(sequences)
        (scores * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found[limit] = scores.detach(), gradients
    assert_close(found[LIMIT], found[None], rtol=1e-5, atol=1e-6)
    parts = len(sizes[1:]) // 2
    assert parts > 5 and max(sizes[1:]) <= LIMIT  # each part once forward, and once more in the backward pass
    sizes.clear()
    with torch.no_grad():
        model(sequences)
    assert sizes == [sequences.num_tokens]
