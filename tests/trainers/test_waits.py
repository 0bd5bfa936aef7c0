"""No hidden waits: whole updates on the meta device, whose tensors have no values to read, see `tests.waits`.

On a GPU, reading a value of a tensor makes the CPU wait until the GPU has computed it. An update reads the losses of its
micro-batches and the norm of the gradient once, at its end, since a value that is not finite stops the run.
"""

import pytest
import torch
from torch import nn

from rankpo.errors import ConfigError
from rankpo.models.engine.dry_run import Pass, activation_bytes
from tests.recipes import EVERY, HYBRID, LATE, LOSSES, RERANKER, SPARSE
from tests.runs import trainer_of
from tests.waits import DEVICE, recorded, without_autocast

QUICK = ("replay", "graded_margin", "m3", "ppo", "reranker of lists")
# What waits by nature, and the line where it does.
EXCEPTIONS = {
    name: ("vocabulary_pooling.py", "of_logit.nonzero")  # The number of weights above 0: their gradient is sparse.
    for name, options in EVERY.items()
    if "kind=sparse" in options and "model.pooling=sum" not in options
}
OTHER_KINDS = {
    "late_interaction": LATE,
    "sparse": (*SPARSE, "model.pooling=sum"),
    "hybrid": HYBRID,
    "reranker": RERANKER,
}


def waits_of(options, folder):
    """The `Waits` of the forward and backward passes of an update of several micro-batches."""
    trainer = trainer_of(*options, f"cache_dir={folder}", "trainer.max_tokens=100")
    trainer.policy.train()
    update = trainer.prepare(0)
    for model in (trainer.policy, *vars(trainer.reference or object).values()):
        if isinstance(model, nn.Module):
            model.to(DEVICE)
    with without_autocast(), recorded() as waits:
        trainer.backward(trainer.begin(update))
    assert trainer.values and all(value.is_meta for value in trainer.values)
    assert any(parameter.grad is not None for parameter in trainer.policy.parameters())
    return waits


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_an_update_waits_for_nothing(recipe, tmp_path):
    if recipe in EXCEPTIONS:
        file, line = EXCEPTIONS[recipe]
        with pytest.raises(NotImplementedError) as error:
            waits_of(EVERY[recipe], tmp_path)
        place = [entry for entry in error.traceback if "/rankpo/" in str(entry.path)][-1]
        assert place.path.name == file and line in str(place.statement)
        return
    assert waits_of(EVERY[recipe], tmp_path).found == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_the_losses_of_embeddings_wait_for_nothing_with_another_kind(kind, tmp_path):
    waiting, refused = {}, []
    of_embeddings = {name: options for name, options in LOSSES.items() if "kind=embedding" in options}
    for name, options in of_embeddings.items():
        kept = [option for option in options if not option.startswith(("model", "kind="))]
        made = [option for option in OTHER_KINDS[kind] if option.startswith(("model", "kind="))]
        try:
            waits = waits_of((*kept, *made), tmp_path / name)
        except (ConfigError, ValueError) as error:
            assert isinstance(error, ConfigError) or "one vector per text" in str(error), error
            refused.append(name)
            continue
        if waits.found:
            waiting[name] = waits.found
    assert waiting == {}
    assert len(of_embeddings) - len(refused) >= 30, refused


def test_the_device_shows_a_wait(tmp_path, monkeypatch):
    """The tests above can fail."""
    trainer = trainer_of(*EVERY["rankpo"], f"cache_dir={tmp_path}")
    update = trainer.prepare(0)
    trainer.policy.to(DEVICE)
    original = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda batch: float(original(batch).losses.sum()))
    with without_autocast(), pytest.raises(RuntimeError, match="meta"):
        trainer.backward(update)
    rows, on_cpu = torch.zeros(3, device=DEVICE), torch.tensor([0, 2])
    with recorded() as waits:
        on_cpu.to(DEVICE, non_blocking=True)
        assert waits.found == []
        on_cpu.to(DEVICE)
        rows[on_cpu]
        rows[on_cpu] = 1
        rows.new_tensor([1.0])
        torch.tensor([1.0], device=DEVICE)
    kinds = [line.split(":")[0] for line in waits.found]
    assert kinds == ["blocking copy", *["index on the CPU"] * 2, *["numbers to the device"] * 2]


@pytest.mark.parametrize("recipe", ["late interaction", "contrastive"])
def test_a_pass_over_texts_reads_no_value_of_the_device(recipe, tmp_path):
    """Fake tensors have no values either."""
    trainer = trainer_of(*EVERY[recipe], f"cache_dir={tmp_path}")
    texts = trainer.policy.inputs.collate(trainer.loader.table, trainer.loader.groups(0)).sequences
    assert activation_bytes(trainer.policy.train(), texts, Pass()) > 0
