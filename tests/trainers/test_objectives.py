"""Losses beyond the DPO family train both tiny architectures: 20 updates lower the objective, the first are golden."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from tests.runs import curve, train, trainer_of
from tests.trainers.test_causal import TINY

WHOLE = (
    *TINY,
    "datasets.toy_chat.num_examples=4",
    "trainer.batch_size=8",  # one update is the whole data: its loss must fall
    "trainer.max_steps=20",
    "optimizer=adamw",
    "optimizer.lr=0.003",
)
MODELS = ("tiny_llama_lm", "tiny_pythia")
RECIPES = {
    "csft": (),
    "kto": (),
    "kto-zero": (),
    "bco": ("loss.beta=0.1",),
    "tdpo": (),
    "tdpo 2": ("loss.variant=2",),
    "ra-dpo": (),
    "ra-dpo erm": ("loss.divergence=erm",),
    "bradley-terry": (),
    "ppo": (),
    "grpo": ("loss.beta=0.01",),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_updates_lower_the_objective(tmp_path, recipe, model):
    loss = recipe.partition(" ")[0]
    options = (*WHOLE, f"model={model}", f"loss={loss}", *RECIPES[recipe])
    train(*options, "exp_name=run", f"cache_dir={tmp_path}")
    losses = curve(tmp_path / "run")
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.02
    assert_close(losses[:4], GOLDEN[recipe][MODELS.index(model)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["bco", "kto", "ppo"])
def test_a_resumed_run_goes_on_as_if_uninterrupted(tmp_path, recipe):
    """Reference points, critics and references survive: the third update gives the same weights, bit by bit."""
    options = (*TINY, f"loss={recipe}", *RECIPES[recipe], "optimizer=adamw", "exp_name=run", f"cache_dir={tmp_path}")
    first, second = trainer_of(*options), trainer_of(*options)
    first.policy.train(), second.policy.train()
    for step in range(2):
        first.train_step(first.prepare(step))
    first.save()
    second.resume()
    for trainer in (first, second):
        trainer.train_step(trainer.prepare(2))
    assert second.state == first.state
    assert_close(second.policy.state_dict(), first.policy.state_dict(), rtol=0, atol=0)


# the first four losses of each model
GOLDEN = {
    "csft": ([5.570899, 5.40809, 5.24408, 5.091431], [5.595361, 5.396257, 5.241532, 5.112035]),
    "kto": ([0.5, 0.468917, 0.44176, 0.416869], [0.5, 0.460313, 0.432335, 0.407583]),
    "kto-zero": ([0.5, 0.468917, 0.44176, 0.416869], [0.5, 0.460313, 0.432335, 0.407583]),
    "bco": ([1.386294, 1.269501, 1.174617, 1.092134], [1.386294, 1.240059, 1.142764, 1.060646]),
    "tdpo": ([0.693147, 0.579996, 0.497005, 0.432969], [0.693147, 0.553864, 0.471862, 0.410269]),
    "tdpo 2": ([0.693147, 0.579917, 0.496771, 0.432626], [0.693147, 0.553542, 0.471314, 0.40965]),
    "ra-dpo": ([0.693147, 0.580814, 0.497964, 0.43388], [0.693147, 0.555632, 0.473541, 0.411844]),
    "ra-dpo erm": ([0.693147, 0.580159, 0.497406, 0.433487], [0.693147, 0.55452, 0.472714, 0.411325]),
    "bradley-terry": ([0.693147, 0.69285, 0.689159, 0.67415], [0.693147, 0.692402, 0.682201, 0.661131]),
    "ppo": ([0.004228, -0.091206, -0.177045, -0.225476], [0.004228, -0.118203, -0.196266, -0.246436]),
    "grpo": ([0.263546, 0.163377, 0.120433, 0.108415], [0.263546, 0.149499, 0.118426, 0.108635]),
}
