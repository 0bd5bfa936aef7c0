"""Three sources of reference scores, one meaning; what is stored, and what at the start is only rounding."""

import math

import pytest
import torch
from safetensors.numpy import load_file
from torch.testing import assert_close

from rankpo.models.reference import fingerprint_weights
from tests.runs import RANKPO, curve, train, trainer_of

REFERENCE = (*RANKPO, "loss.reference_free=false")


def first_update(tmp_path, *options):
    """Metrics of the first update, in many micro-batches."""
    trainer = trainer_of(*REFERENCE, "trainer.max_tokens=300", *options, f"cache_dir={tmp_path}")
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    return trainer.running.result(lambda tensor: tensor)


@pytest.mark.parametrize("source", ["live", "adapters"])
def test_before_any_update_nothing_is_gained(tmp_path, source):
    """The reference passes through the same chunks: policy less reference is 0, ties are no success, the loss log 2."""
    lora = ("model.use_peft=true",) if source == "adapters" else ()
    metrics = first_update(tmp_path, f"trainer.reference={source}", *lora)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["rewards/accuracies"] == 0
    assert metrics["rewards/margins"] == 0


def test_adapters_switched_off_and_on_are_trained_as_before(tmp_path):
    """Not those of BERT's pooler, which no embedding uses: the optimizer never had them."""
    trainer = trainer_of(*REFERENCE, "model.use_peft=true", f"cache_dir={tmp_path}")
    before = {name: parameter.requires_grad for name, parameter in trainer.policy.named_parameters()}
    assert {flag for name, flag in before.items() if "lora_A" in name} == {True, False}
    with trainer.policy.adapters_off():
        pass
    assert {name: parameter.requires_grad for name, parameter in trainer.policy.named_parameters()} == before


def test_before_any_update_stored_scores_leave_rounding(tmp_path):
    """Other chunks, other last digits: 1e-6 of a cosine, times β/τ = 20. Accuracies are then no statement."""
    metrics = first_update(tmp_path, "trainer.reference=stored")
    assert metrics["loss"] == pytest.approx(math.log(2), abs=2e-5)
    assert abs(metrics["rewards/margins"]) < 2e-5


@pytest.mark.parametrize("source", ["stored", "live", "adapters"])
def test_the_reference_has_the_precision_of_the_policy(tmp_path, source):
    """bfloat16 moves these cosines by 5e-4: beside a float32 reference, a preference that nobody learnt."""
    lora = ("model.use_peft=true",) if source == "adapters" else ()
    trainer = trainer_of(
        *REFERENCE,
        "+model.random.initializer_range=0.5",
        "trainer.precision=bf16",
        f"trainer.reference={source}",
        *lora,
        f"cache_dir={tmp_path}",
    )
    (batch,) = (item.batch for item in trainer.prepare(0).micro_batches)
    with torch.no_grad():
        scores = trainer.policy.score(trainer.policy(batch.sequences), batch)
    assert (trainer.reference.scores(batch) - scores).abs().max() <= (1e-6 if source == "stored" else 0)


def test_all_three_train_alike(tmp_path):
    for source in ("stored", "live", "adapters"):
        options = ("model.use_peft=true", "model.peft.lora_r=4", "optimizer.lr=3", f"trainer.reference={source}")
        train(*REFERENCE, *options, f"exp_name={source}", f"cache_dir={tmp_path}")
    stored = curve(tmp_path / "stored")
    assert stored[-1] != pytest.approx(math.log(2), abs=1e-4)
    for source in ("live", "adapters"):
        assert_close(curve(tmp_path / source), stored, rtol=1e-4, atol=1e-5)


def test_stored_scores_are_inner_products_by_hand(tmp_path):
    """Every slot of the table: texts encoded one by one, multiplied."""
    trainer = trainer_of(*REFERENCE, "trainer.reference=stored", f"cache_dir={tmp_path}")
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    scores = load_file(path)["scores"]
    table, inputs = trainer.loader.table, trainer.policy.inputs
    for example in range(0, len(table), 5):
        query = trainer.policy.encode_sequences(inputs.sequences(table, [inputs.key(table.query[example], "query")]))[0]
        for slot in table.slots(example):
            candidate = trainer.policy.encode_sequences(
                inputs.sequences(table, [inputs.key(table.candidates[slot], "candidate")])
            )[0]
            assert scores[slot] == pytest.approx(float(query @ candidate), abs=1e-6)


def test_stored_scores_are_reused_by_the_same_weights_only(tmp_path, capsys):
    options = (*REFERENCE, "trainer.reference=stored", f"cache_dir={tmp_path}")
    train(*options, "exp_name=a")
    assert "computing reference scores" in capsys.readouterr().err
    train(*options, "exp_name=b")
    assert "reference scores from" in capsys.readouterr().err
    for changed in ("seed=7", "trainer.precision=bf16", "model.pooling=cls"):
        train(*options, "exp_name=c", "overwrite=true", changed)
        assert "computing reference scores" in capsys.readouterr().err, changed
    assert len(list((tmp_path / "reference").glob("*.safetensors"))) == 4


def test_fingerprints_see_a_single_bit():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    before = fingerprint_weights(model)
    assert fingerprint_weights(model) == before
    model.weight.data.view(torch.int32)[2, 1] ^= 1
    assert fingerprint_weights(model) != before
