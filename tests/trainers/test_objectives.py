"""Every loss trains both tiny architectures on a file: known first values, 20 updates lower it, the first are golden."""

from __future__ import annotations

import json
from math import log

import pytest
from torch.testing import assert_close

from rankpo.data.generated.toy_chat import ToyChat
from tests.runs import curve, train, trainer_of
from tests.thinning import thinned
from tests.trainers.test_causal import TINY
from tests.trainers.test_golden_causal import TEMPLATE

WHOLE = (
    *(option for option in TINY if "datasets" not in option),
    "trainer.batch_size=8",  # one update is the whole data: its loss must fall
    "trainer.max_steps=20",
    "optimizer=adamw",
    "optimizer.lr=0.003",
)
MODELS = ("tiny_llama", "tiny_pythia")
RECIPES = {
    "sft": (),
    "dpo": (),
    "dpo hinge": ("loss.kind=hinge",),
    "cdpo": (),
    "robust_dpo": (),
    "ipo": ("loss.beta=0.1",),
    "simpo": (),
    "cpo": (),
    "orpo": (),
    "slic": (),
    "apo-zero": (),
    "apo-down": (),
    "nca": ("loss.beta=0.1",),
    "exo": (),
    "sppo": ("loss.beta=0.1",),
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
# The expected losses of a policy that equals its reference.
FIRST = {
    **dict.fromkeys(("dpo", "cdpo", "robust_dpo", "tdpo", "ra-dpo", "bradley-terry"), log(2)),
    **dict.fromkeys(("dpo hinge", "apo-zero", "apo-down"), 1.0),
    **dict.fromkeys(("nca", "bco"), 2 * log(2)),
    **dict.fromkeys(("kto", "kto-zero"), 0.5),
    "ipo": 25.0,
    "exo": 2.7612307,
    "sppo": 50.0,
}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """Four preferences in TRL's form, in a file."""
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    with path.open("w") as file:
        for example in ToyChat(name="toy_chat", num_examples=4).examples():
            prompt = [{"role": role, "content": text} for role, text in example.query]
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in example.candidates)
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    template = path.with_name("template.jinja")
    template.write_text(TEMPLATE)
    return ("datasets=[chat]", f"datasets.chat.path={path}", f"model.chat_template={template}")


@pytest.mark.parametrize("model", thinned(MODELS, keep=["tiny_llama"]))
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_updates_lower_the_objective(tmp_path, preferences, recipe, model):
    loss = recipe.partition(" ")[0]
    options = (*WHOLE, *preferences, f"model={model}", f"loss={loss}", *RECIPES[recipe])
    train(*options, "exp_name=run", f"cache_dir={tmp_path}")
    losses = curve(tmp_path / "run")
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.02
    first = FIRST.get(recipe, FIRST.get(loss))
    if first is not None:
        assert_close(losses[0], first, atol=1e-6, rtol=1e-6)
    assert_close(losses[:4], GOLDEN[recipe][MODELS.index(model)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["bco", "kto", "ppo"])
def test_a_resumed_run_goes_on_as_if_uninterrupted(tmp_path, recipe):
    """Reference points, critics and references survive: the third update gives the same weights, bit by bit."""
    options = (*TINY, f"loss={recipe}", *RECIPES[recipe], "optimizer=adamw", "exp_name=run", f"cache_dir={tmp_path}")
    first, second = trainer_of(*options), trainer_of(*options)
    first.policy.train(), second.policy.train()
    for step in range(2):
        first.train_step(first.prepare(step))
    first.watch.save()
    second.watch.resume()
    for trainer in (first, second):
        trainer.train_step(trainer.prepare(2))
    assert second.state == first.state
    assert_close(second.policy.state_dict(), first.policy.state_dict(), rtol=0, atol=0)


# the first four losses of each model
GOLDEN = {
    "sft": ([5.560976, 5.38083, 5.208082, 5.049434], [5.590598, 5.33399, 5.163476, 5.013149]),
    "dpo": ([0.693147, 0.579838, 0.496621, 0.432497], [0.693147, 0.55322, 0.47105, 0.409288]),
    "dpo hinge": ([1.0, 0.749478, 0.52135, 0.408551], [1.0, 0.6783, 0.458331, 0.393212]),
    "cdpo": ([0.693147, 0.629943, 0.592259, 0.571], [0.693147, 0.61756, 0.585222, 0.566535]),
    "robust_dpo": ([0.693147, 0.548523, 0.436561, 0.343705], [0.693147, 0.513008, 0.399555, 0.308309]),
    "ipo": ([25.0, 22.797501, 20.972687, 19.288805], [25.0, 22.407743, 20.601597, 18.893589]),
    "simpo": ([1.602811, 1.180552, 0.870808, 0.628415], [1.54857, 1.066403, 0.782026, 0.557865]),
    "cpo": ([5.946095, 5.717175, 5.521553, 5.355487], [5.933418, 5.635054, 5.443456, 5.281167]),
    "orpo": ([5.664708, 5.451234, 5.263569, 5.106141], [5.660318, 5.377233, 5.198369, 5.04906]),
    "slic": ([5.139534, 4.672085, 4.499148, 4.374075], [4.957712, 4.611467, 4.456765, 4.324557]),
    "apo-zero": ([1.0, 0.937834, 0.883519, 0.833737], [1.0, 0.920625, 0.864671, 0.815165]),
    "apo-down": ([1.0, 0.943305, 0.892597, 0.843702], [1.0, 0.917472, 0.856343, 0.808641]),
    "nca": ([1.386294, 1.328464, 1.284034, 1.248183], [1.386294, 1.314293, 1.271075, 1.236686]),
    "exo": ([2.761231, 2.346273, 2.013635, 1.742182], [2.761231, 2.239771, 1.904157, 1.643586]),
    "sppo": ([50.0, 31.754326, 23.252337, 18.25779], [50.0, 29.61796, 21.526527, 17.478071]),
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
