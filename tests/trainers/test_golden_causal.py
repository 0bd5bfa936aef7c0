"""Golden loss curves of causal language models: a change that should keep numbers must keep these; what moves them says so in LOG.md."""

import pytest
from torch.testing import assert_close

from tests.runs import curve, train

TINY = (
    "model=tiny_pythia",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
    "datasets=[toy_chat]",
    "datasets.toy_chat.num_examples=12",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "trainer.epochs=2",
    "optimizer=sgd",  # Adam divides by the gradient: rounding where it is nearly 0 would show in the curve
    "scheduler=constant",
    "scheduler.warmup=0",
)
# learning rates at which each moves by more than rounding and does not leap
RECIPES = {
    "sft": ("loss=sft", "optimizer.lr=1.0"),
    "csft": ("loss=csft", "optimizer.lr=1.0"),
    "dpo": ("loss=dpo", "optimizer.lr=0.3"),
    "simpo": ("loss=simpo", "optimizer.lr=0.3"),
    "kto": ("loss=kto", "optimizer.lr=0.3"),
    "tdpo": ("loss=tdpo", "optimizer.lr=0.3"),
    "tdpo2": ("loss=tdpo", "loss.variant=2", "optimizer.lr=0.3"),
    "ra-dpo": ("loss=ra-dpo", "loss.confidence_level=0.8", "optimizer.lr=0.3"),
    "bradley-terry": ("loss=bradley-terry", "optimizer.lr=0.3"),
    "ppo": ("loss=ppo", "optimizer.lr=0.3"),
}
GOLDEN = {
    "sft": [5.565684, 5.432940, 4.439393, 3.768611, 4.450828, 3.792540],
    "csft": [
        5.608613, 5.444984, 4.414353, 3.997868, 4.323544, 4.589674, 3.484486, 3.380734, 2.568697, 2.896311, 2.657463,
        2.125804,
    ],
    "dpo": [0.693147, 0.720016, 0.642830, 0.558182, 0.641661, 0.608142],
    "simpo": [1.609409, 1.669748, 1.820111, 1.565295, 1.126048, 1.852030],
    "kto": [
        0.5, 0.452320, 0.529370, 0.503195, 0.567701, 0.574056, 0.523892, 0.511867, 0.491526, 0.564655, 0.447403,
        0.461432,
    ],
    "tdpo": [0.693147, 0.718106, 0.643507, 0.560555, 0.639797, 0.599369],
    "tdpo2": [0.693147, 0.719059, 0.643220, 0.559649, 0.640528, 0.607033],
    "ra-dpo": [0.693147, 0.707775, 0.647907, 0.568517, 0.637596, 0.600924],
    "bradley-terry": [0.693147, 0.693215, 0.692457, 0.692277, 0.690276, 0.685063],
    "ppo": [
        0.004234, -0.009535, -0.027031, 0.113067, 0.056935, 0.098164, -0.009835, 0.306743, 0.139356, 0.110875, 0.035189,
        0.071989,
    ],
}  # fmt: skip


# turns behind their roles, and no first token in front: the template that the curves were written with
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_curve(tmp_path, recipe):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    options = (f"model.chat_template={template}", f"cache_dir={tmp_path}", "exp_name=run")
    train(*TINY, *RECIPES[recipe], *options)
    assert_close(curve(tmp_path / "run"), GOLDEN[recipe], rtol=1e-5, atol=1e-5)
