"""A list of candidates longer than max_tokens: computed in parts, with the scores and gradients of the whole."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rankpo.tasks.work.start_lines import large_example
from rankpo.trainers.several import SeveralTrainer
from rankpo.trainers.strategies.base import Strategy
from tests.runs import trainer_of

RERANKER = ("model=tiny_bert", "kind=reranker", "model.random.num_hidden_layers=1", "datasets=[toy_contrastive]")
LIMIT = 90
SMALL = 20
EMBEDDING = ("model=tiny_bert", "kind=embedding", "model.random.num_hidden_layers=1", "datasets=[toy_contrastive]")
SEVERAL = (*EMBEDDING[:3], "datasets=[toy_contrastive,toy_graded]", "datasets.toy_graded.loss=softmax")


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


@pytest.mark.parametrize(
    ("options", "sharded", "said"),
    [
        ((*RERANKER, "loss=softmax"), False, ()),
        ((*RERANKER, "loss=softmax"), True, ("split parameters", "one process or DDP computes it in parts")),
        ((*EMBEDDING, "loss=softmax"), False, ("models of kind embedding",)),
        ((*EMBEDDING, "loss=softmax"), True, ("split parameters",)),
        ((*EMBEDDING, "loss=contrastive"), True, ()),
        ((*EMBEDDING, "loss=contrastive", "loss.negatives=own"), True, ("split parameters",)),
        ((*SEVERAL, "loss=contrastive"), False, ("models of kind embedding",)),
    ],
)
def test_a_list_that_is_held_whole_is_said(tmp_path, monkeypatch, options, sharded, said):
    monkeypatch.setattr(Strategy, "sharded", sharded)
    trainer = trainer_of(*options, f"trainer.max_tokens={SMALL}", f"cache_dir={tmp_path}")
    line = large_example(trainer)
    assert (line is None) == (said == ())
    if line is None:
        return
    parts = trainer.parts[1:] if isinstance(trainer, SeveralTrainer) else [trainer]
    largest = max(
        int(part.policy.inputs.costs(part.loader.table, [part.loader.group(0, item)])[0])
        for part in parts
        for item in part.loader.items
    )
    assert largest > SMALL
    assert line.startswith(f"the largest example has {largest:,} tokens, and max_tokens is {SMALL}")
    assert all(words in line for words in (*said, "dataloader.group_size"))


def test_a_list_within_max_tokens_is_not_said(tmp_path):
    trainer = trainer_of(*EMBEDDING, "loss=softmax", "trainer.max_tokens=4000", f"cache_dir={tmp_path}")
    assert large_example(trainer) is None
