"""The loop around the updates: what is logged, kept, stopped and exported."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError, StorageError
from rankpo.evaluation.base import Result
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.trainers.update import NonFiniteError
from tests.runs import CONTRASTIVE, RANKPO, curve, final_weights, train, trainer_of


def rows(run_dir, kind):
    """{step: row without prefixes} of one kind; a step twice is an error."""
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        named = {name.removeprefix(f"{kind}/"): value for name, value in row.items() if name.startswith(f"{kind}/")}
        if named:
            assert row["step"] not in found
            found[row["step"]] = named
    return found


def steps_saved(run_dir):
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*"))


def scripted_run(monkeypatch, tmp_path, answers, *options):
    """A run whose evaluations, one per update, answer from a list; also the weights that each of them saw."""
    seen = []

    def answer(evaluator, model):
        seen.append({name: tensor.clone() for name, tensor in model.base.state_dict().items()})
        return Result({"accuracy": answers[len(seen) - 1]})

    monkeypatch.setattr(PreferenceEvaluator, "evaluate", answer)
    evaluated = ("eval_datasets=[toy_pairs]", "trainer.eval_every=1", "trainer.best_metric=accuracy")
    train(*RANKPO, *evaluated, *options, "exp_name=run", f"cache_dir={tmp_path}")
    return tmp_path / "run", seen


def test_other_ways_to_compute_agree_with_the_plain_run(tmp_path):
    """Checkpointing computes the same twice: equal to rounding. bfloat16 keeps 8 bits: losses within 2 %."""
    train(*RANKPO, "exp_name=plain", f"cache_dir={tmp_path}")
    expected = curve(tmp_path / "plain")
    for name, option, tolerance in (
        ("checkpointing", "trainer.gradient_checkpointing=true", 1e-6),
        ("padded", "model.layout=padded", 1e-5),
        ("eager", "model.attn_implementation=eager", 1e-5),
        ("bf16", "trainer.precision=bf16", 2e-2),
    ):
        train(*RANKPO, option, f"exp_name={name}", f"cache_dir={tmp_path}")
        actual = curve(tmp_path / name)
        assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")
    assert actual != expected  # bfloat16 was really used
    assert rankpo.load(str(tmp_path / "bf16" / "FINAL")).encode("x").shape == (32,)


def test_gradient_checkpointing_computes_the_layers_again(tmp_path):
    counts = []
    for option in ("false", "true"):
        trainer = trainer_of(*RANKPO, f"trainer.gradient_checkpointing={option}", f"cache_dir={tmp_path}")
        trainer.policy.train()
        seen = []
        trainer.policy.base.encoder.layer[0].attention.register_forward_hook(lambda *call, s=seen: s.append(1))
        trainer.train_step(trainer.prepare(0))
        counts.append(len(seen))
    assert counts[1] == 2 * counts[0]


@pytest.mark.slow
def test_a_compiled_model_agrees(tmp_path):
    options = (*RANKPO, "trainer.max_steps=2", f"cache_dir={tmp_path}")
    train(*options, "exp_name=plain")
    train(*options, "model.compile=true", "exp_name=compiled")
    assert_close(curve(tmp_path / "compiled"), curve(tmp_path / "plain"), rtol=1e-4, atol=1e-5)


def test_compiled_packed_rows_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    said = []
    trainer = trainer_of(*RANKPO, f"cache_dir={tmp_path}")
    for packed in (True, False):
        trainer.policy.packed = packed
        trainer.policy.compile_body(said.append)
    assert [line.partition(";")[2] for line in said] == [" add model.layout=padded"]


def test_fp16_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which fp16 works")
    with pytest.raises(ConfigError, match=r"trainer\.precision=fp16 needs a GPU.*bf16 or fp32"):
        train(*RANKPO, "trainer.precision=fp16", f"cache_dir={tmp_path}")


def test_rows_and_their_steps(tmp_path):
    """Six updates an epoch: baseline at 0, then what the keys ask for, and the end."""
    options = ("eval_datasets=[toy_pairs]", "trainer.log_every=4", "trainer.eval_every=epoch", "trainer.epochs=2")
    train(*RANKPO, *options, "exp_name=run", f"cache_dir={tmp_path}")
    assert list(rows(tmp_path / "run", "eval")) == [0, 6, 12]
    logged = rows(tmp_path / "run", "train")
    assert list(logged) == [4, 8, 12]
    assert logged[8]["epoch"] == pytest.approx(8 / 6)
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second"} <= logged[4].keys()
    record = json.loads((tmp_path / "run" / "FINAL" / "rankpo.json").read_text())
    evaluated = rows(tmp_path / "run", "eval")
    assert (record["metrics_before"], record["metrics_after"]) == (evaluated[0], evaluated[12])


def test_no_baseline_where_none_is_wanted(tmp_path):
    train(*RANKPO, "eval_datasets=[toy_pairs]", "trainer.eval_at_start=false", "exp_name=run", f"cache_dir={tmp_path}")
    assert list(rows(tmp_path / "run", "eval")) == [6]


def test_logged_means_are_averages_by_hand(tmp_path):
    """Rows of three updates against the three rows of one each: every update here has as many pairs."""
    for every in (1, 3):
        train(
            *RANKPO,
            f"trainer.log_every={every}",
            "trainer.max_tokens=300",
            f"exp_name=e{every}",
            f"cache_dir={tmp_path}",
        )
    single, three = rows(tmp_path / "e1", "train"), rows(tmp_path / "e3", "train")
    assert list(single) == [1, 2, 3, 4, 5, 6] and list(three) == [3, 6]
    for name in ("loss", "grad_norm", "scores/margins", "rewards/accuracies"):
        for end in (3, 6):
            mean = sum(single[step][name] for step in range(end - 2, end + 1)) / 3
            assert three[end][name] == pytest.approx(mean, rel=1e-6, abs=1e-9), (name, end)


def test_checkpoints_kept(tmp_path):
    """Every second update, the newest two of them, and the two that were asked for by number."""
    options = ("trainer.save_every=2", "trainer.keep_checkpoints=2", "trainer.intermediate_checkpoints=[1,2]")
    train(*RANKPO, *options, "trainer.epochs=2", "exp_name=run", f"cache_dir={tmp_path}")
    assert steps_saved(tmp_path / "run") == [1, 2, 10, 12]
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-12" / "weights.safetensors")
    final = final_weights(tmp_path / "run")
    assert len(saved) > 10
    assert_close(saved, {name: final[name.removeprefix("backbone.")] for name in saved}, rtol=0, atol=0)


def test_a_checkpoint_of_every_evaluation_stays(tmp_path):
    """As in HALOs and Ra-DPO: intermediate_checkpoints=true; others come and go beside them."""
    options = ("trainer.intermediate_checkpoints=true", "trainer.eval_every=5", "trainer.save_every=2")
    train(*RANKPO, *options, "trainer.keep_checkpoints=1", "trainer.epochs=2", "exp_name=run", f"cache_dir={tmp_path}")
    assert steps_saved(tmp_path / "run") == [5, 10, 12]


def test_a_checkpoint_that_is_due_and_best_is_written_once(tmp_path, monkeypatch):
    from rankpo.trainers.state import Keeper

    written = []
    save = Keeper.save
    monkeypatch.setattr(Keeper, "save", lambda own, state, run: (written.append(state.step), save(own, state, run)))
    scripted_run(monkeypatch, tmp_path, [0.0, 1, 2, 3, 0, 0, 0], "trainer.save_every=1")
    assert written == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("answers", "best"), [([0.1, 0.2, 0.9, 0.3, 0.9, 0.1, 0.0], 2), ([0.8, 0.2, 0.7, 0.3, 0.4, 0.1, 0.0], 0)]
)
def test_final_holds_the_best_weights(tmp_path, monkeypatch, answers, best):
    """Also where the start was best: then no update was worth anything, and FINAL says so."""
    run_dir, seen = scripted_run(monkeypatch, tmp_path, answers, "trainer.final=best")
    final = final_weights(run_dir)
    assert_close(final, {name: seen[best][name] for name in final}, rtol=0, atol=0)
    assert any(not torch.equal(final[name], seen[-1][name]) for name in final)
    record = json.loads((run_dir / "FINAL" / "rankpo.json").read_text())
    assert (record["metrics_before"], record["metrics_after"]) == tuple(
        {"toy_pairs/accuracy": value} for value in (answers[0], answers[best])
    )


def test_final_holds_the_last_weights_unless_asked(tmp_path, monkeypatch):
    run_dir, seen = scripted_run(monkeypatch, tmp_path, [0.1, 0.2, 0.9, 0.3, 0.2, 0.1, 0.0])
    final = final_weights(run_dir)
    assert_close(final, {name: seen[6][name] for name in final}, rtol=0, atol=0)
    assert steps_saved(run_dir) == [1, 2]  # the best two so far are the newest two: gains came at 1 and 2


def test_early_stop(tmp_path, monkeypatch, capsys):
    """Best at 1; two evaluations without gain: stopped after update 3, whose log line is not lost."""
    options = ("trainer.patience=2", "trainer.log_every=5")
    run_dir, seen = scripted_run(monkeypatch, tmp_path, [0.1, 0.5, 0.5, 0.4], *options)
    assert list(rows(run_dir, "eval")) == [0, 1, 2, 3]
    assert list(rows(run_dir, "train")) == [3]
    assert "stopping early: no gain in 2 evaluations; best at step 1" in capsys.readouterr().err
    assert (run_dir / "FINAL").exists() and len(seen) == 4


def test_best_weights_that_are_damaged_are_not_replaced_by_others(tmp_path, monkeypatch):
    run_dir, _ = scripted_run(monkeypatch, tmp_path, [0.1, 0.9, 0.2, 0.3, 0.2, 0.1, 0.0])
    trainer = trainer_of(
        *RANKPO,
        "eval_datasets=[toy_pairs]",
        "trainer.best_metric=accuracy",
        "trainer.final=best",
        "exp_name=run",
        f"cache_dir={tmp_path}",
    )
    trainer.state.step, trainer.state.best_step = 6, 1
    (run_dir / "checkpoints" / "step-1" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"trainer\.final=best: .*step-1 cannot be read .*set trainer\.final=last"):
        trainer.finish()


def test_a_metric_that_nothing_measures_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.best_metric=up is not measured; allowed: .*toy_pairs/accuracy"):
        train(*RANKPO, "eval_datasets=[toy_pairs]", "trainer.best_metric=up", f"cache_dir={tmp_path}")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("recipe", [CONTRASTIVE, RANKPO])
def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(tmp_path, recipe):
    trainer = trainer_of(*recipe, f"cache_dir={tmp_path}")
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    trainer.watch.save()
    with torch.no_grad():
        trainer.policy.base.encoder.layer[0].output.dense.bias[3] = float("nan")
    before = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    update = trainer.prepare(1)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_step(update)
    assert str(caught.value).startswith("update 2: the loss or its gradient is not finite; examples ")
    assert update.ids[0] in str(caught.value) and "\n" not in str(caught.value)
    assert_close(dict(trainer.policy.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    assert trainer.state.step == 1 and steps_saved(tmp_path / "run") == [1]


def test_an_infinite_loss_with_a_finite_gradient_stops_too(tmp_path, monkeypatch):
    trainer = trainer_of(*RANKPO, f"cache_dir={tmp_path}")
    trainer.policy.train()
    compute = trainer.compute_loss

    def spoiled(batch):
        output = compute(batch)
        return type(output)(output.losses + torch.tensor(float("inf")), output.weights, output.metrics, output.terms)

    monkeypatch.setattr(trainer, "compute_loss", spoiled)
    with pytest.raises(NonFiniteError, match="update 1"):
        trainer.train_step(trainer.prepare(0))


def test_gradients_are_clipped_over_all_parameters(tmp_path):
    """The norm of the whole gradient, by hand; larger than max_grad_norm, it is scaled to it."""
    options = (*RANKPO, f"cache_dir={tmp_path}", "optimizer.momentum=0.0")
    free = trainer_of(*options, "trainer.max_grad_norm=null")
    tight = trainer_of(*options, "trainer.max_grad_norm=0.01")
    norms, moved = [], []
    for trainer in (free, tight):
        trainer.policy.train()
        start = {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}
        trainer.train_step(trainer.prepare(0))
        gradients = [p.grad for p in trainer.policy.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        steps = [(p.detach() - start[n]).flatten() for n, p in trainer.policy.named_parameters()]
        moved.append(float(torch.cat(steps).norm()))
    assert norms[0] > 0.05 and norms[1] == pytest.approx(0.01, rel=1e-3)
    assert moved == pytest.approx([0.1 * norms[0], 0.1 * 0.01], rel=1e-3)  # lr 0.1
    logged = [trainer.running.result(lambda x: x)["grad_norm"] for trainer in (free, tight)]
    assert logged == pytest.approx([norms[0]] * 2, rel=1e-5)  # what is logged is the norm before clipping


def test_weight_decay_is_for_matrices_alone(tmp_path):
    trainer = trainer_of(*RANKPO, "optimizer=adamw", "optimizer.weight_decay=0.5", f"cache_dir={tmp_path}")
    names = {id(parameter): name for name, parameter in trainer.policy.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    trained = {name for name, parameter in trainer.policy.named_parameters() if parameter.requires_grad}
    assert decay.keys() == trained
    assert {name for name, value in decay.items() if value} == {
        name for name in trained if name.endswith("weight") and "LayerNorm" not in name
    }
    assert set(decay.values()) == {0.5, 0.0}


def test_weights_of_datasets_and_of_replay(tmp_path):
    """Pairs are shown twice, half of what is replayed once."""
    replay = ("loss.replay_weight=1", "loss.replay_temperature=1", "replay_datasets=[toy_contrastive]")
    weights = ("datasets.toy_pairs.weight=2", "replay_datasets.toy_contrastive.weight=0.5")
    plain = trainer_of(*RANKPO, *replay, f"cache_dir={tmp_path}")
    weighted = trainer_of(*RANKPO, *replay, *weights, f"cache_dir={tmp_path}")
    assert len(weighted.loader.items) == 2 * len(plain.loader.items)
    assert len(weighted.replay.items) == round(len(plain.replay.items) / 2)


def test_the_schedule_runs_over_the_real_number_of_updates(tmp_path):
    """Six updates, no warm-up, linear: 6/6, 5/6 … 1/6 of 0.1 at the updates 1 to 6."""
    train(*RANKPO, "scheduler=linear", "scheduler.warmup=0", "exp_name=run", f"cache_dir={tmp_path}")
    assert curve(tmp_path / "run", "train/learning_rate") == pytest.approx([0.1 * n / 6 for n in (6, 5, 4, 3, 2, 1)])
    options = ("scheduler=linear", "scheduler.warmup=2", "trainer.max_steps=5")
    train(*RANKPO, *options, "exp_name=five", f"cache_dir={tmp_path}")
    expected = [0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3]
    assert curve(tmp_path / "five", "train/learning_rate") == pytest.approx(expected)
