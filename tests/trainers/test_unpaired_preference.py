"""KTO: first values, one reference point for the whole update, its weight rule, every kind of model."""

from __future__ import annotations

import io

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.runs import processes
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.assemble import assemble
from tests.runs import curve, train, trainer_of
from tests.trainers.test_causal import TINY

KTO = (*TINY, "loss=kto")


def run(tmp_path, name, *overrides):
    train(*overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


def moved(trainer):
    """The trainer with a policy that has left its reference."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return trainer


@pytest.mark.parametrize("loss", ["kto", "kto-zero"])
def test_first_value(tmp_path, loss):
    done = run(tmp_path, "run", *TINY, f"loss={loss}", "trainer.max_steps=2")
    assert_close(curve(done)[0], 0.5, atol=1e-6, rtol=0)
    assert abs(curve(done)[1] - 0.5) > 1e-5
    assert curve(done, "train/kl/reference_point")[0] == 0


def naive_log_ratio(trainer, query: int, completion: int) -> float:
    """log π(y|x) - log ref(y|x) by transformers' own logits in float64."""
    table = trainer.loader.table
    prompt, completed = table.tokens(query), table.tokens(completion)
    ids = torch.tensor([*prompt, *completed])
    sums = []
    for model in (trainer.policy.base, trainer.reference.model.base):
        asked, model.config._attn_implementation = model.config._attn_implementation, "sdpa"
        with torch.no_grad():
            logps = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
        model.config._attn_implementation = asked
        sums.append(float(logps.gather(-1, ids[1:, None])[len(prompt) - 1 :].sum()))
    return sums[0] - sums[1]


def test_reference_point_is_the_mean_over_the_update(tmp_path):
    """Each prompt with the next completion of another prompt, one at a time."""
    trainer = moved(trainer_of(*KTO, "trainer.max_tokens=150", f"cache_dir={tmp_path}"))
    update = trainer.prepare(1)
    assert len(update.mismatched) > 1
    trainer.begin(update)
    groups = trainer.loader.groups(1)
    ratios = []
    for i, group in enumerate(groups):
        later = [groups[(i + k) % len(groups)] for k in range(1, len(groups))]
        other = next(item for item in later if item.query != group.query)
        ratios.append(naive_log_ratio(trainer, group.query, int(other.candidates[0])))
    mean = sum(ratios) / len(ratios)
    assert abs(mean) > 1e-3
    assert_close(float(trainer.point), max(0.0, mean), atol=1e-4, rtol=1e-4)
    assert_close(trainer.running.result(lambda sums: sums)["kl/mismatched"], mean, atol=1e-4, rtol=1e-4)
    assert trainer.policy.training


def test_the_point_reaches_the_loss(tmp_path):
    trainer = trainer_of(*KTO, f"cache_dir={tmp_path}")
    update = trainer.begin(trainer.prepare(0))
    trainer.point = torch.tensor(7.0)
    (item,) = update.micro_batches
    output = trainer.compute_loss(item.batch)
    desirable = item.batch.labels.relevance[:, 0] > 0
    expected = torch.where(desirable, torch.sigmoid(torch.tensor(0.7)), torch.sigmoid(torch.tensor(-0.7)))
    assert_close(output.losses, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ""),
        (("dataloader.undesirable_fraction=0.5",), "Set loss.desirable_weight in [0.50, 0.67]"),
        (("dataloader.undesirable_fraction=0.5", "loss.desirable_weight=0.6"), ""),
        (("dataloader.undesirable_fraction=0.01",), "one kind is missing; KTO needs both"),
    ],
)
def test_weight_rule(tmp_path, overrides, said):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    stream = io.StringIO()
    experiment = compose((*KTO, *overrides, f"cache_dir={tmp_path}"))
    assemble(experiment, processes.make_accelerator("fp32"), MetricsLogger(stream=stream))
    assert said in stream.getvalue()
    assert ("KTO" in stream.getvalue()) == bool(said)


def test_one_prompt_in_an_update_is_an_error_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="all items of the data have one prompt, and KTO's"):
        trainer_of(*KTO, "datasets.toy_chat.num_examples=1", f"cache_dir={tmp_path}")


def test_stored_references_are_refused():
    with pytest.raises(ConfigError, match=r"trainer\.reference=stored: KTOLoss needs the reference model itself"):
        compose((*KTO, "trainer.reference=stored"))
    assert compose((*TINY, "loss=kto-zero", "trainer.reference=stored")).loss is not None


def test_rerankers_learn_it_too(tmp_path):
    plain = ("model=tiny_bert", "kind=reranker", "datasets=[toy_pairs]", "trainer.batch_size=4", "trainer.log_every=1")
    done = run(tmp_path, "run", *plain, "loss=kto", "trainer.max_steps=2")
    assert_close(curve(done)[0], 0.5, atol=1e-6, rtol=0)
    assert compose((*plain, "loss=kto")).loss.logps == "sigmoid"
