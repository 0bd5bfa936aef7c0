"""The trainer's keys: what is refused, and when something is due."""

import pytest

from rankpo.trainers.settings import TrainerSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"log_every": 0}, "log_every must be >= 1, got 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be >= 1, got 0"),
        ({"replay_batch_size": 0}, "replay_batch_size must be >= 1 or null, got 0"),
        ({"epochs": 0}, "epochs must be > 0, got 0"),
        ({"max_steps": 0}, "max_steps must be >= 1 or null, got 0"),
        ({"eval_every": "day"}, "eval_every must be a number of updates >= 1, epoch or null, got 'day'"),
        ({"eval_every": True}, "eval_every must be a number of updates >= 1, epoch or null, got True"),
        ({"save_every": 0}, "save_every must be a number of updates >= 1, epoch or null, got 0"),
        ({"precision": "int8"}, "precision must be one of auto, fp32, bf16, fp16, got 'int8'"),
        ({"final": "first"}, "final must be one of last, best, got 'first'"),
        ({"reference": "frozen"}, "reference must be one of auto, stored, live, adapters, got 'frozen'"),
        ({"max_grad_norm": 0}, "max_grad_norm must be > 0 or null, got 0"),
        ({"final": "best"}, "final=best needs best_metric, which is null"),
        ({"patience": 2}, "patience needs best_metric, which is null"),
        ({"patience": 0, "best_metric": "mrr@10"}, "patience must be >= 1 or null, got 0"),
        ({"intermediate_checkpoints": (2, 0)}, r"intermediate_checkpoints must be updates >= 1, got \[2, 0\]"),
        ({"intermediate_checkpoints": ("x",)}, r"intermediate_checkpoints must be updates >= 1, got \['x'\]"),
        (
            {"intermediate_checkpoints": True, "eval_every": None},
            "intermediate_checkpoints=true writes a checkpoint every eval_every updates, and eval_every is null",
        ),
        ({"timeout_minutes": 0}, "timeout_minutes must be > 0, got 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainerSettings(**settings)


def test_total_steps():
    """3 epochs of 7; half an epoch of 7 is 4 (3.5 rounded to even); never none; max_steps wins."""
    assert TrainerSettings(epochs=3).total_steps(7) == 21
    assert TrainerSettings(epochs=0.5).total_steps(7) == 4
    assert TrainerSettings(epochs=0.01).total_steps(7) == 1
    assert TrainerSettings(epochs=3, max_steps=5).total_steps(7) == 5


def test_what_is_due():
    settings = TrainerSettings()
    assert [step for step in range(1, 15) if settings.is_due("epoch", step, 6)] == [6, 12]
    assert [step for step in range(1, 15) if settings.is_due(5, step, 6)] == [5, 10]
    assert not any(settings.is_due(None, step, 6) for step in range(1, 15))


def test_which_checkpoints_stay():
    named = TrainerSettings(intermediate_checkpoints=(3, 4))
    every = TrainerSettings(intermediate_checkpoints=True, eval_every=5)
    never = TrainerSettings(intermediate_checkpoints=False, eval_every=5)
    found = [[step for step in range(1, 13) if item.is_intermediate(step, 6)] for item in (named, every, never)]
    assert found == [[3, 4], [5, 10], []]
