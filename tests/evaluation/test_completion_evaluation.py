"""Evaluation of causal language models under each loss, against sums over whole vocabularies; always the same data."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.testing import assert_close

from rankpo.errors import ConfigError
from tests.losses.test_risk import naive_cvar
from tests.runs import trainer_of
from tests.trainers.test_causal import TINY
from tests.trainers.test_unpaired_preference import moved

PAIRS = (*TINY, "eval_datasets=[toy_chat]", "eval_datasets.toy_chat.num_examples=4", "eval_datasets.toy_chat.seed=3")
SUBJECT = "What colour is snow?"


def evaluated(trainer) -> dict[str, float]:
    """The metrics without the name of the data; the same once more, since nothing is drawn."""
    found = trainer.watch.evaluate()
    assert trainer.watch.evaluate() == found
    return {name.partition("/")[2]: value for name, value in found.items()}


def log_softmaxes(trainer) -> list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """For each example of the evaluation, for each completion: [T, V] of policy and reference in float64, labels [T]."""
    (evaluator,) = trainer.evaluators
    table = evaluator.table(trainer.policy.inputs.pieces())
    models = [trainer.policy.base, getattr(trainer.reference, "model", trainer.policy).base]
    for model in models:
        model.config._attn_implementation = "sdpa"
    found = []
    for example in range(len(table)):
        prompt = table.tokens(int(table.query[example]))
        rows = []
        for slot in table.slots(example):
            completion = table.tokens(int(table.candidates[slot]))
            ids = torch.tensor([*prompt, *completion])
            with torch.no_grad():
                logits = [model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] for model in models]
            policy, fixed = (each.double().log_softmax(-1) for each in logits)
            rows.append((policy, fixed, torch.tensor(completion)))
        found.append(rows)
    return found


def logp(distributions: torch.Tensor, labels: torch.Tensor) -> float:
    return float(distributions.gather(-1, labels[:, None].long()).sum())


def divergence(policy: torch.Tensor, fixed: torch.Tensor, level: float) -> float:
    return sum(float(naive_cvar(p, q, level)) for p, q in zip(fixed, policy, strict=True))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("tdpo", ()),
        ("ra-dpo", ("loss.confidence_level=0.9",)),
        ("dpo", ("trainer.reference=live",)),
        ("kto", ()),
        ("ppo", ()),
    ],
)
def test_pairs_beside_a_reference_model(tmp_path, loss, options):
    """KL and risk of every token, summed by completion; rewards are β(log π - log reference)."""
    trainer = moved(trainer_of(*PAIRS, f"loss={loss}", *options, f"cache_dir={tmp_path}"))
    metrics = evaluated(trainer)
    pairs = log_softmaxes(trainer)
    beta = 1.0 if loss == "ppo" else 0.1
    gains = [[beta * (logp(p, ids) - logp(q, ids)) for p, q, ids in pair] for pair in pairs]
    expected = {
        "accuracy": mean(logp(w[0], w[2]) > logp(r[0], r[2]) for w, r in pairs),
        "rewards/chosen": mean(w for w, _ in gains),
        "rewards/rejected": mean(r for _, r in gains),
        "rewards/margins": mean(w - r for w, r in gains),
        "rewards/accuracies": mean(w > r for w, r in gains),
        "kl/chosen": mean(divergence(w[0], w[1], 1.0) for w, _ in pairs),
        "kl/rejected": mean(divergence(r[0], r[1], 1.0) for _, r in pairs),
    }
    if loss == "ra-dpo":
        expected["risk/chosen"] = mean(divergence(w[0], w[1], 0.9) for w, _ in pairs)
        expected["risk/rejected"] = mean(divergence(r[0], r[1], 0.9) for _, r in pairs)
        assert metrics["risk/chosen"] > metrics["kl/chosen"] > 0.01
    for name, value in expected.items():
        assert_close(metrics[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(metrics["kl/margins"], metrics["kl/chosen"] - metrics["kl/rejected"], atol=1e-5, rtol=0)
    if loss == "dpo":
        value = mean(math.log1p(math.exp(r - w)) for w, r in gains)
        assert_close(metrics["loss"], value, atol=1e-5, rtol=1e-5)
    assert ("loss" in metrics) == (loss in ("tdpo", "ra-dpo", "dpo"))


@pytest.mark.parametrize(
    ("loss", "precision"),
    [("tdpo", "fp32"), ("ppo", "fp32"), ("grpo", "fp32"), ("dpo", "bf16"), ("ra-dpo", "bf16"), ("kto", "bf16")],
)
def test_before_the_first_update_nothing_is_gained(tmp_path, loss, precision):
    """Exactly: in bfloat16 the start model is read as the policy is."""
    options = (f"loss={loss}", f"trainer.precision={precision}", f"cache_dir={tmp_path}")
    metrics = evaluated(trainer_of(*PAIRS, *options))
    assert {
        name: metrics[f"rewards/{name}"] for name in ("chosen", "rejected", "margins", "accuracies")
    } == dict.fromkeys(("chosen", "rejected", "margins", "accuracies"), 0.0)
    assert loss == "dpo" or abs(metrics["kl/chosen"]) < 1e-5
    assert "loss" not in metrics or metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_losses_without_a_reference(tmp_path):
    """simpo by hand; a reward model's rewards; adapters off are a reference at hand, stored scores are none."""
    trainer = moved(trainer_of(*PAIRS, "loss=simpo", f"cache_dir={tmp_path}"))
    metrics = evaluated(trainer)
    pairs = log_softmaxes(trainer)
    gaps = [logp(w[0], w[2]) / len(w[2]) - logp(r[0], r[2]) / len(r[2]) for w, r in pairs]
    assert_close(metrics["loss"], mean(math.log1p(math.exp(-2.5 * (gap - 0.55))) for gap in gaps), atol=1e-4, rtol=1e-4)
    assert_close(metrics["rewards/margins"], 2.5 * mean(gaps), atol=1e-4, rtol=1e-4)
    rewards = evaluated(trainer_of(*PAIRS, "loss=bradley-terry", f"cache_dir={tmp_path}"))
    assert rewards["loss"] == pytest.approx(math.log(2)) and rewards["rewards/margins"] == 0
    assert "kl/chosen" in evaluated(trainer_of(*PAIRS, "loss=dpo", "model.use_peft=true", f"cache_dir={tmp_path}"))
    stored = trainer_of(*PAIRS, "loss=bco", f"cache_dir={tmp_path}")
    assert not {"kl/chosen", "loss", "rewards/delta"} & set(evaluated(stored))


def chat_file(folder, records) -> tuple[str, ...]:
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ("eval_datasets=[chat]", f"eval_datasets.chat.path={path}")


def test_single_completions(tmp_path):
    """Rewards by kind, with no pair to be right about."""
    data = chat_file(
        tmp_path,
        [
            {"prompt": SUBJECT, "completion": " White.", "label": True},
            {"prompt": SUBJECT, "completion": " Green, mostly.", "label": False},
            {"prompt": "And coal?", "completion": " Black.", "label": True},
        ],
    )
    trainer = moved(trainer_of(*TINY, *data, "loss=kto", f"cache_dir={tmp_path}"))
    metrics = evaluated(trainer)
    one, two, three = (rows[0] for rows in log_softmaxes(trainer))
    gain = [0.1 * (logp(p, ids) - logp(q, ids)) for p, q, ids in (one, two, three)]
    kls = [divergence(p, q, 1.0) for p, q, _ in (one, two, three)]
    tokens = len(one[2]) + len(three[2])
    expected = {
        "logps": (logp(one[0], one[2]) + logp(three[0], three[2])) / tokens,
        "rewards/chosen": (gain[0] + gain[2]) / 2,
        "rewards/rejected": gain[1],
        "rewards/margins": (gain[0] + gain[2]) / 2 - gain[1],
        "kl/chosen": (kls[0] + kls[2]) / 2,
        "kl/rejected": kls[1],
    }
    for name, value in expected.items():
        assert_close(metrics[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert "rewards/accuracies" not in metrics


def test_groups_of_scored_completions(tmp_path):
    """Accuracy over the five pairs of a group of four of which two tie: an odd number is never half right."""
    turns = [{"role": "user", "content": SUBJECT}]
    data = chat_file(
        tmp_path,
        [
            {"type": "scalar_feedback", "prompt_id": "1", "prompt": turns, "reward": reward,
             "output": [{"role": "assistant", "content": text}]}
            for text, reward in (("White.", 0.9), ("Green.", 0.2), ("Snow is white.", 0.5), ("Blue, I would say.", 0.2))
        ],
    )  # fmt: skip
    trainer = moved(trainer_of(*TINY, *data, "loss=grpo", f"cache_dir={tmp_path}"))
    metrics = evaluated(trainer)
    (group,) = log_softmaxes(trainer)
    gains = [logp(p, ids) - logp(q, ids) for p, q, ids in group]
    better = ((0, 1), (0, 2), (0, 3), (2, 1), (2, 3))
    assert_close(metrics["rewards/accuracies"], mean(gains[w] > gains[r] for w, r in better))
    assert not {"rewards/chosen", "rewards/rejected"} & set(metrics), "rewards alone do not say what is desirable"
    known = evaluated(
        moved(trainer_of(*TINY, *data, "eval_datasets.chat.relevant_from=0.5", "loss=grpo", f"cache_dir={tmp_path}"))
    )
    assert_close(known["rewards/chosen"], mean([gains[0], gains[2]]), atol=1e-4, rtol=1e-4)
    assert_close(known["rewards/rejected"], mean([gains[1], gains[3]]), atol=1e-4, rtol=1e-4)


def test_what_may_choose_the_best(tmp_path):
    """Metrics of which more is better, known before anything is measured."""
    options = (*PAIRS, f"cache_dir={tmp_path}", "trainer.best_metric=rewards/accuracies")
    assert trainer_of(*options, "loss=tdpo").settings.best_metric == "rewards/accuracies"
    with pytest.raises(
        ConfigError, match=r"trainer\.best_metric=rewards/accuracies is not measured; allowed: .*perplexity"
    ):
        trainer_of(*options, "loss=sft")
