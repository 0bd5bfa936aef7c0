"""The promise: a loss curve depends on batch_size and seed only, whatever the memory knob and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.config.experiment import Experiment
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.processes import make_accelerator
from rankpo.tasks.work.assemble import assemble
from tests.distributed.strategies import (
    ANSWERS,
    CORPUS,
    LISTS,
    PAIRS,
    ROOT,
    difference,
    evaluations,
    launch_all,
    place,
)
from tests.recipes import EVERY, LOSSES, OF_LISTS, OF_PAIRS, OF_SCORED_PAIRS, PARTS, WHOLE, gentle
from tests.runs import CONTRASTIVE, RANKPO, curve, train, trainer_of
from tests.thinning import thinned

FEW, MANY = 4, 50  # updates


# Losses that differ in one formula from another that the default run keeps: the way through the loop is the same.
ALIKE = (
    *{*OF_PAIRS} - {"bco", "bradley-terry", "dpo", "orpo"},
    *{*OF_LISTS} - {"kl_distill", "lambdarank", "margin_mse", "pointwise"},
    *{*OF_SCORED_PAIRS} - {"cosent"},
)


def run(tmp_path, name, *overrides):
    train(*overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


@dataclass(frozen=True)
class Updates:
    """Loss and gradient norm of each update, the trained weights after the last, and how often the model was called."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    calls: int


def updates(number: int, experiment: Experiment, max_tokens: int) -> Updates:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    experiment = replace(experiment, settings=replace(experiment.settings, max_tokens=max_tokens))
    trainer = assemble(experiment, make_accelerator(), MetricsLogger(main=False))
    trainer.policy.train()
    calls: list[object] = []
    trainer.policy.register_forward_hook(lambda *_: calls.append(None))
    losses, norms = [], []
    for step in range(number):
        trainer.train_step(trainer.prepare(step))
        metrics = trainer.running.result(lambda sums: sums)
        trainer.running.clear()
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
    return Updates(losses, norms, trainer.strategy.trained_weights(), len(calls))


def assert_max_tokens_changes_nothing(number: int, folder: Path, recipe: str, *more: str) -> None:
    """One micro-batch with its graph kept, against many: for in-batch negatives, the gradient cache."""
    experiment = compose([*EVERY[recipe], *more, f"trainer.max_steps={number}", f"cache_dir={folder}"])
    whole = updates(number, experiment, WHOLE)
    parts = updates(number, experiment, PARTS[recipe])
    assert parts.calls > whole.calls
    assert all(map(math.isfinite, whole.losses))
    assert max(whole.losses) - min(whole.losses) > 1e-4 * abs(whole.losses[0])  # tenfold what is asked for below
    assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-6)  # ppo's and grpo's cross 0
    assert_close(parts.norms, whole.norms, rtol=1e-4, atol=1e-6)
    assert_close(parts.weights, whole.weights, rtol=1e-4, atol=1e-5)


def test_every_loss_is_in_the_table():
    assert sorted(LOSSES) == sorted(path.stem for path in (ROOT / "config" / "loss").glob("*.yaml"))


@pytest.mark.parametrize("recipe", thinned(EVERY, keep=[name for name in EVERY if name not in ALIKE]))
def test_max_tokens_changes_nothing(tmp_path, recipe):
    assert_max_tokens_changes_nothing(FEW, tmp_path, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EVERY)
def test_max_tokens_changes_nothing_in_fifty_updates(tmp_path, recipe):
    assert_max_tokens_changes_nothing(MANY, tmp_path, recipe, gentle(recipe))


def assert_two_processes_give_the_run_of_one(folder: Path, recipes: Mapping[str, Sequence[str]]) -> None:
    """One process with whole updates against two with many micro-batches, in one launch: losses, evaluations, FINAL."""
    runs = {name: (*recipe, f"trainer.max_tokens={PARTS[name]}") for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        train(*recipe, f"trainer.max_tokens={WHOLE}", *place(folder, f"one of {name}"))
    launch_all("torchrun", runs, folder)
    differences = {name: difference(folder / name, folder / f"one of {name}") for name in recipes}
    assert not any(differences.values()), "\n".join(f"{name}: {text}" for name, text in differences.items() if text)


# each evaluation has numbers of texts, pairs or lists that two processes do not share evenly
IN_CI = {
    "contrastive": (*CORPUS, "trainer.ema=0.9"),
    "graded_margin": CORPUS,
    "cosent": CORPUS,
    "gist": (),
    "triplet, in batch": (),
    "graded replay": (),
    "rankpo": PAIRS,
    "replay": (),
    "bco": (),
    "lambdarank": CORPUS,
    "m3": CORPUS,
    "late interaction": CORPUS,
    "sparse": CORPUS,
    "listwise_combined": LISTS,
    "reranker of lists": CORPUS,
    "dpo, tokens": ANSWERS,
    "ra-dpo": ANSWERS,
    "kto, rising": (),
    "ppo, two passes": (),
    "grpo, by sequence": (),
}


def test_two_processes_give_the_run_of_one(tmp_path):
    recipes = {name: (*EVERY[name], f"trainer.max_steps={FEW}", *evaluation) for name, evaluation in IN_CI.items()}
    assert_two_processes_give_the_run_of_one(tmp_path, recipes)
    for name, evaluation in IN_CI.items():
        assert len(curve(tmp_path / name)) == FEW
        assert bool(evaluations(tmp_path / name)) == bool(evaluation)
    assert max(curve(tmp_path / "kto, rising", "train/kl/reference_point")) > 0


@pytest.mark.slow
def test_two_processes_give_fifty_updates_of_every_loss(tmp_path):
    recipes = {name: (*recipe, f"trainer.max_steps={MANY}", gentle(name)) for name, recipe in EVERY.items()}
    assert_two_processes_give_the_run_of_one(tmp_path, recipes)
    assert all(len(curve(tmp_path / name)) == MANY for name in EVERY)


def gradients(*overrides):
    """Gradients of the first update by parameter name."""
    trainer = trainer_of(*overrides)
    trainer.policy.train()
    trainer.backward(trainer.prepare(0))
    return {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}


def test_gradient_cache_equals_the_plain_gradient_of_the_whole_batch(tmp_path):
    """The other side is written out: one forward, the loss, autograd."""
    cached = gradients(*CONTRASTIVE, "trainer.max_tokens=150", f"cache_dir={tmp_path}")
    trainer = trainer_of(*CONTRASTIVE, f"cache_dir={tmp_path}")
    batch = trainer.prepare(0).batch
    output = trainer.loss.in_batch(trainer.policy(batch.sequences), batch)
    output.losses.mean().backward()
    plain = {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}
    assert cached.keys() == plain.keys()
    whole = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    for name, gradient in plain.items():  # entries of one tensor may nearly cancel: the whole is the measure
        assert (cached[name] - gradient).norm() < 1e-5 * whole, name


def test_gradient_cache_replays_dropout(tmp_path):
    """With dropout, both passes over a part must drop the same units: then the parts agree with a sum taken twice."""
    options = (*CONTRASTIVE, "trainer.dropout=true", "trainer.max_tokens=150", f"cache_dir={tmp_path}")
    trainer = trainer_of(*options)
    trainer.policy.train()
    seen = []
    trainer.policy.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    trainer.backward(trainer.prepare(0))
    parts = (len(seen) + 1) // 2  # the last is encoded once: it keeps its graph
    assert parts >= 3
    assert_close(seen[: parts - 1], seen[parts:])


def test_each_distinct_text_is_encoded_once(tmp_path):
    """Pairs of one query share it: the rows of a batch are as many as its distinct texts."""
    trainer = trainer_of(*RANKPO, "trainer.batch_size=24", f"cache_dir={tmp_path}")
    (micro_batch,) = trainer.prepare(0).micro_batches
    groups = trainer.loader.groups(0)
    texts = {(g.query, "q") for g in groups} | {(int(row), "c") for g in groups for row in g.candidates}
    assert len(micro_batch.batch.sequences) == len(texts) < 3 * len(groups)


@pytest.mark.parametrize("source", ["live", "adapters"])
def test_references_agree_with_the_stored_one(tmp_path, source):
    lora = ("model.use_peft=true",) if source == "adapters" else ()
    options = (*RANKPO, *lora, "loss.reference_free=false", f"cache_dir={tmp_path}")
    stored = trainer_of(*options, "trainer.reference=stored")
    other = trainer_of(*options, f"trainer.reference={source}")
    for parameter in other.policy.parameters():
        if parameter.requires_grad:  # the policy moves on; the reference must not
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    (batch,) = (item.batch for item in stored.prepare(0).micro_batches)
    (same,) = (item.batch for item in other.prepare(0).micro_batches)
    assert_close(other.reference.scores(same), stored.reference.scores(batch), atol=1e-6, rtol=0)
    assert (other.policy.score(other.policy(same.sequences), same) - batch.reference).abs().max() > 1e-3


def test_golden_curves(tmp_path):
    """A refactoring that should keep numbers must keep these; what moves them says so in LOG.md."""
    for name, expected in GOLDEN.items():
        assert_close(curve(run(tmp_path, name, *EVERY[name])), expected, rtol=1e-4, atol=1e-5)


GOLDEN = {
    "contrastive": [3.00312, 3.180806, 2.878858],
    "own negatives": [1.79459, 1.788649, 1.777171],
    "rankpo": [0.708302, 0.703695, 0.66515, 0.651374, 0.676006, 0.68404],
    "replay": [2.042704, 2.121808, 2.114342, 1.923555, 2.007022, 1.998951],
}
