"""Every preference loss with every kind of model that is no language model: it trains, or is refused in one sentence."""

from __future__ import annotations

import math
import re

import pytest
import torch

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from tests.runs import ROOT, trainer_of

MODELS = {
    "embedding": ("model=tiny_bert", "kind=embedding", "model.random.num_hidden_layers=1", "loss.temperature=0.1"),
    "sparse": ("model=tiny_bert", "kind=sparse", "model.random.num_hidden_layers=1", "loss.temperature=1"),
    "reranker": ("model=tiny_bert", "kind=reranker", "model.random.num_hidden_layers=1"),
}
DATA = (
    "datasets=[toy_pairs]",
    "datasets.toy_pairs.num_posts=4",
    "datasets.toy_pairs.num_pairs=1",
    "trainer.batch_size=8",  # everything is one update, with as many desirable as undesirable candidates
    "scheduler=constant",
    "scheduler.warmup=0",
)
TRAINERS = ("paired_preference", "token_preference", "unpaired_preference", "sft", "ppo", "grpo")
# of token distributions, or of a language model's own critic: no score stands for them
NEED_TOKENS = {"tdpo", "ra-dpo", "sft", "csft", "ppo"}
OPTIONS = {
    "sppo": ("loss.beta=0.1",),  # its published beta, .001, is one of log-probabilities of whole texts
    "ipo": ("loss.beta=0.5",),
    "bco": ("loss.beta=0.1",),
    "nca": ("loss.beta=0.1",),
    "kto": ("loss.beta=1",),
}


def losses() -> list[str]:
    """The options of config/loss that a trainer of preferences, completions or rewards takes."""
    found = []
    for path in sorted((ROOT / "config" / "loss").glob("*.yaml")):
        (trainer,) = re.findall(r"override /trainer: (\w+)", path.read_text())
        found += [path.stem] if trainer in TRAINERS else []
    return found


EVERY_KIND = ("rankpo", "dpo", "kto", "bradley-terry")  # The other losses train one kind here, and the rest if slow.
CASES = [
    pytest.param(loss, kind, marks=[] if loss in EVERY_KIND or kind == next(iter(MODELS)) else [pytest.mark.slow])
    for loss in sorted(set(losses()) - NEED_TOKENS)
    for kind in MODELS
]


def test_none_is_forgotten():
    assert len(losses()) == 24 and {"rankpo", "dpo", "bco", "kto", "bradley-terry", *NEED_TOKENS} < {*losses()}


@pytest.mark.parametrize(("loss", "kind"), CASES)
def test_it_trains(tmp_path, loss, kind):
    """Six steps on one update lower its loss: candidates of pairs, or each by itself."""
    options = (*DATA, f"loss={loss}", *MODELS[kind], *OPTIONS.get(loss, ()))
    trainer = trainer_of(*options, "optimizer.lr=0.01", f"cache_dir={tmp_path}")
    trainer.policy.train()
    update, values = trainer.prepare(0), []
    for _ in range(6):
        trainer.train_step(update)
        values.append(trainer.running.result(lambda sums: sums)["loss"])
        trainer.running.clear()
    assert all(map(math.isfinite, values))
    assert values[-1] < values[0] - 1e-4


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", sorted(NEED_TOKENS))
def test_it_is_refused_in_one_sentence(monkeypatch, loss, kind):
    """When the config is checked: no model is made for it."""
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("a model is made"))
    with pytest.raises(ConfigError) as error:
        compose((*DATA, *MODELS[kind][:3], f"loss={loss}"))
    assert len(error.value.problems) == 1
    expected = rf"\w+Loss needs token log-probabilities; model .* of kind {kind} and gives none\. Add kind=causal_lm with a decoder, such as model=llama, qwen or pythia\."
    assert re.fullmatch(expected, error.value.problems[0])
