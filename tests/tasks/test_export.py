"""task=export: folders that load again with the expected weights, in three precisions and between two models."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.interpolation import InterpolationError, interpolate, mean_weights, round_weights, shared_names
from tests.runs import CONTRASTIVE, TINY, train

LORA = ("model.use_peft=true", "model.peft.lora_r=2", "optimizer.lr=1.0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the second from the first, with adapters and a checkpoint on its way."""
    cache = tmp_path_factory.mktemp("runs")
    common = (*CONTRASTIVE, f"cache_dir={cache}", "trainer.max_steps=2", "eval_datasets=[]")
    train(*common, "exp_name=first")
    start = f"model.load_from={cache}/first/FINAL"
    train(*common, start, "exp_name=second", "trainer.save_every=1", *LORA)
    return cache


def export(cache, name, *overrides):
    train(*TINY, "task=export", f"cache_dir={cache}", f"exp_name={name}", *overrides)
    return cache / name


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_interpolation_by_hand_and_only_where_both_have_it():
    """.25 of the way from (1, 2) to (5, 0) is (2, 1.5)."""
    start = {"a": torch.tensor([1.0, 2.0]), "old": torch.ones(1), "count": torch.tensor(3)}
    trained = {"a": torch.tensor([5.0, 0.0]), "new": torch.tensor([7.0]), "count": torch.tensor(9)}
    mixed = interpolate(start, trained, 0.25)
    assert {name: tensor.tolist() for name, tensor in mixed.items()} == {"a": [2.0, 1.5], "new": [7.0], "count": 9}
    assert shared_names(start, trained).only == ("new", "old")


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(InterpolationError, match=r"a has the shapes \(2,\) and \(3,\)"):
        interpolate({"a": torch.ones(2)}, {"a": torch.ones(3)}, 0.5)
    with pytest.raises(InterpolationError, match="have no weight name in common"):
        interpolate({"a": torch.ones(2)}, {"b": torch.ones(2)}, 0.5)
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(InterpolationError, match=r"weight overflows in torch\.float16"):
        round_weights(layer, torch.float16)


def test_several_alphas_in_one_pass(runs):
    folder = export(runs, "mixed", f"task.run={runs}/second", "task.alphas=[0,0.25,1]")
    start, trained = weights(runs / "first/FINAL"), weights(runs / "second/FINAL")
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    assert sorted(path.name for path in folder.iterdir()) == ["alpha-0", "alpha-0.25", "alpha-1"]
    for alpha in (0, 0.25, 1):
        found = weights(folder / f"alpha-{alpha}" / "FINAL")
        assert_close(found, {name: (1 - alpha) * start[name] + alpha * trained[name] for name in trained})
    record = json.loads((folder / "alpha-0.25/FINAL/rankpo.json").read_text())
    assert record["export"] == {"checkpoint": "FINAL", "start": None, "alpha": 0.25, "dtype": "float32"}
    assert record["exp_name"] == "second"
    assert str(runs) not in json.dumps(record["export"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision_holds_the_rounded_weights(runs, dtype, tolerance):
    folder = export(runs, dtype, f"task.run={runs}/first", f"task.dtype={dtype}") / "FINAL"
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights(runs / "first/FINAL").items()}
    assert_close(weights(folder), expected, rtol=0, atol=0)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    ours, theirs = rankpo.load(runs / "first/FINAL", "cpu"), rankpo.load(folder, "cpu")
    assert_close(theirs.encode(["some text"]), ours.encode(["some text"]), rtol=0, atol=tolerance)
    assert [path.name for path in folder.parent.iterdir()] == ["FINAL"]


def test_a_checkpoint_with_adapters_is_merged(runs):
    """The last checkpoint is FINAL; the one before is neither FINAL nor the start."""
    last = export(runs, "last", f"task.run={runs}/second", "task.checkpoint=step-2") / "FINAL"
    before = export(runs, "before", f"task.run={runs}/second", "task.checkpoint=step-1") / "FINAL"
    start, final = weights(runs / "first/FINAL"), weights(runs / "second/FINAL")
    assert_close(weights(last), final)
    name = max(final, key=lambda key: float((final[key] - start[key]).abs().max()))
    for other in (start, final):
        assert not torch.allclose(weights(before)[name], other[name], atol=1e-7)


def test_the_model_of_the_config_with_another_start(runs):
    folder = export(
        runs, "given", f"model.load_from={runs}/second/FINAL", f"task.start={runs}/first/FINAL", "task.alphas=[0.5]"
    )
    start, trained = weights(runs / "first/FINAL"), weights(runs / "second/FINAL")
    assert_close(weights(folder / "FINAL"), {name: (start[name] + trained[name]) / 2 for name in trained})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.run={runs}/second", "task.checkpoint=step-9"), "has step-1, step-2, FINAL"),
        (("task.run={runs}/second", "exp_name=second", "overwrite=true"), "an input of the task; choose another"),
        (("task.run={runs}/first", "task.alphas=[0.5]"), "started from random weights; set task.start"),
        (("model.load_from={runs}/first/FINAL", "task.alphas=[0.5]"), "task.alphas need task.run, or task.start"),
        (("exp_name=x",), "needs task.run or model.load_from"),
        (("task.run={runs}/first", "task.alphas=[2]"), r"task.alphas must be numbers in \[0, 1\], got \[2\]"),
        (("task.run={runs}/first", "task.dtype=int8"), "task.dtype must be one of float32, bfloat16, float16"),
        (("task.run={runs}/none",), "no such run directory"),
    ],
)
def test_errors_say_what_to_change(runs, overrides, message):
    with pytest.raises(ConfigError, match=message):
        export(runs, "failing", *(item.format(runs=runs) for item in overrides))


def test_what_is_there_is_not_replaced_unasked(runs):
    export(runs, "once", f"task.run={runs}/first")
    with pytest.raises(ConfigError, match="already exists; set overwrite=true"):
        export(runs, "once", f"task.run={runs}/first")
    export(runs, "once", f"task.run={runs}/first", "overwrite=true")


def test_means_of_weights_by_hand():
    """(1 + 2 + 6)/3 = 3; whole numbers are the last model's; halves are summed in more digits than they have."""
    states = [
        {"a": torch.tensor([value]), "count": torch.tensor(number)} for number, value in enumerate((1.0, 2.0, 6.0))
    ]
    assert {name: tensor.tolist() for name, tensor in mean_weights(states).items()} == {"a": [3.0], "count": 2}
    many = [{"a": torch.full((1,), 0.1, dtype=torch.float16)}] * 50
    assert_close(mean_weights(many)["a"], many[0]["a"], rtol=0, atol=0)
    drawn = [{"a": torch.randn(50, generator=torch.Generator().manual_seed(seed))} for seed in range(7)]
    assert torch.equal(mean_weights(drawn)["a"], mean_weights(drawn[::-1])["a"])


def test_models_that_make_no_soup_are_refused():
    with pytest.raises(
        InterpolationError,
        match="model 2 of the soup and the first do not have the same weights; these are in one only: b, c",
    ):
        mean_weights([{"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.ones(2), "c": torch.ones(1)}])
    with pytest.raises(
        InterpolationError, match=r"a has the shapes \(2,\) and \(3,\); only models of one architecture can be averaged"
    ):
        mean_weights([{"a": torch.ones(2)}, {"a": torch.ones(3)}])
    with pytest.raises(InterpolationError, match="at least one model, got none"):
        mean_weights([])


@pytest.fixture(scope="module")
def seeds(runs):
    """Three seeds of one recipe, from the same start, and one that reads longer texts."""
    start = (*CONTRASTIVE, f"cache_dir={runs}", f"model.load_from={runs}/first/FINAL", "trainer.max_steps=2")
    for seed in (1, 2, 3):
        train(*start, f"seed={seed}", f"exp_name=seed{seed}")
    train(*start, "model.passage_max_length=90", "exp_name=longer")
    train(*CONTRASTIVE, f"cache_dir={runs}", "trainer.max_steps=1", "exp_name=elsewhere")
    return runs


def soup(runs, *names):
    return f"task.soup=[{','.join(f'{runs}/{name}' for name in names)}]"


def test_a_soup_of_seeds_and_its_way_from_the_start(seeds):
    folder = export(seeds, "soup", soup(seeds, "seed1", "seed2", "seed3"), "task.alphas=[0.5,1]")
    start = weights(seeds / "first/FINAL")
    members = [weights(seeds / f"seed{seed}" / "FINAL") for seed in (1, 2, 3)]
    mean = {name: sum(member[name] for member in members) / 3 for name in start}
    assert any(not torch.equal(members[0][name], members[1][name]) for name in start)
    assert_close(weights(folder / "alpha-1/FINAL"), mean, rtol=1e-6, atol=1e-8)
    half = {name: (start[name] + mean[name]) / 2 for name in start}
    assert_close(weights(folder / "alpha-0.5/FINAL"), half, rtol=1e-6, atol=1e-7)
    record = json.loads((folder / "alpha-1/FINAL/rankpo.json").read_text())
    assert record["export"]["soup"] == ["seed1", "seed2", "seed3"]
    assert not any(name.startswith("metrics_") for name in record)  # those of a seed are not the soup's
    assert rankpo.load(folder / "alpha-1/FINAL", "cpu").encode(["a text"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("seed1",), (), "soup must name two different run directories or more"),
        (("seed1", "seed1"), (), "soup must name two different run directories or more"),
        (("seed1", "nowhere"), (), "nowhere is not a run directory with a FINAL"),
        (("seed1", "seed2"), ("task.checkpoint=step-1",), "mixes the FINALs of its runs; leave run and checkpoint out"),
        (("seed1", "longer"), (), "differ in their input settings: passage_max_length 90 and 96"),
        (("seed1", "elsewhere"), ("task.alphas=[0.5]",), "the runs started from .*; set task.start"),
    ],
)
def test_soups_that_cannot_be(seeds, names, more, message):
    with pytest.raises(ConfigError, match=message):
        export(seeds, "refused", soup(seeds, *names), *more)
