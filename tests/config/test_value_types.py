"""A value of the wrong type is refused in one line with its key: 'no' for false, abc for a number, 2.5 for a count."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rankpo.config.construct import construct, locate, maker
from rankpo.config.packages import permits
from rankpo.config.value_types import type_problem
from rankpo.errors import ConfigError
from rankpo.trainers.settings import TrainerSettings
from tests.runs import compose

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize(
    ("annotation", "value", "allowed"),
    [
        ("bool", "no", "true or false"),
        ("bool", 1, "true or false"),
        ("int", True, "a whole number"),
        ("int", 2.5, "a whole number"),
        ("int | None", "None", "a whole number or null"),
        ("float", "abc", "a number"),
        ("float", None, "a number"),
        ("float", float("nan"), "a number"),
        ("str", 5, "a text"),
        ("Sequence[str]", "ndcg@10", "a list of texts"),
        ("tuple[int, ...] | None", [64, "x"], "a list of whole numbers or null"),
        ("Mapping[str, float]", {"input": "dear"}, "a mapping"),
    ],
)
def test_refused(annotation, value, allowed):
    assert type_problem(annotation, value, "group.key").startswith(f"group.key must be {allowed}, got {value!r}")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("bool", False),
        ("int", 0),
        ("float", 3),
        ("float", 1e-5),
        ("str | None", None),
        ("str | Sequence[str]", ["a", "b"]),
        ("tuple[str, str] | None", ("<good>", "<bad>")),
        ("Mapping[str, Any] | None", {"a": [1, {"b": None}]}),
        ("dict[str, list[int] | None]", {"a": None, "b": [1]}),
        ("Template", "whatever"),  # another class: not judged here
        (float | int, 2.0),
    ],
)
def test_accepted(annotation, value):
    assert type_problem(annotation, value, "key") is None


def test_a_remedy_is_named_where_there_is_one():
    assert "add quotes: \"key='5'\"" in type_problem("str", 5, "key")
    assert "add brackets: key=[ndcg@10]" in type_problem("Sequence[str]", "ndcg@10", "key")


def test_of_a_constructor_and_of_torchs_optimizers():
    with pytest.raises(ConfigError) as caught:
        construct(TrainerSettings, {"dropout": "no", "epochs": 2, "batch_size": "many"}, "trainer")
    assert [line.split(" must")[0] for line in caught.value.problems] == ["trainer.dropout", "trainer.batch_size"]
    with pytest.raises(ConfigError, match=r"optimizer\.lr must be a number, got 'abc'"):
        maker({"_target_": "torch.optim.AdamW", "lr": "abc", "betas": [0.9, 0.999]}, "optimizer")


def test_keys_of_a_run():
    """overwrite=no would be true, and delete the run."""
    with pytest.raises(ConfigError) as caught:
        compose(["overwrite=no", "seed=x", "datasets=[toy_contrastive]", "model=tiny_bert"])
    assert caught.value.problems == [
        "seed must be a whole number, got 'x'",
        "overwrite must be true or false, got 'no'",
    ]


def test_adapters_and_home(monkeypatch, tmp_path):
    given = ["model=tiny_bert", "datasets=[toy_contrastive]"]
    with pytest.raises(ConfigError, match=r"model\.peft\.lora_r must be a whole number, got 'abc'"):
        compose([*given, "model.peft.lora_r=abc"])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}")
    experiment = compose(
        ["model=tiny_bert", "datasets=[jsonl]", "datasets.jsonl.path='~/a.jsonl'", "cache_dir='~/cache'"]
    )
    assert experiment.datasets[0].path == f"{tmp_path}/a.jsonl" and experiment.cache_dir == tmp_path / "cache"
    assert experiment.run_dir == tmp_path / "cache" / "run"


def test_a_trainer_of_another_loss():
    with pytest.raises(ConfigError, match="trainer=contrastive cannot train RankPOLoss; remove trainer"):
        compose(["trainer=contrastive", "loss=rankpo", "model=tiny_bert", "datasets=[toy_pairs]"])


def nodes(value: Any) -> list[dict[str, Any]]:
    """Every mapping with a `_target_` below a value."""
    if not isinstance(value, dict):
        return []
    below = [found for item in value.values() for found in nodes(item)]
    return [value, *below] if "_target_" in value else below


def test_every_default_is_of_its_declared_type():
    checked = 0
    for path in sorted(CONFIG.rglob("*.yaml")):
        for node in nodes(OmegaConf.to_container(OmegaConf.load(path))):
            if not permits(node["_target_"]):
                continue  # Hydra's own
            target = TrainerSettings if path.parent.name == "trainer" else locate(node["_target_"])
            plain = {k: v for k, v in node.items() if not isinstance(v, dict) and not ("${" in str(v) or v == "???")}
            plain.pop("_target_")
            if plain.get("temperature") == "auto":  # A number replaces it before the loss is made.
                plain.pop("temperature")
            found = [type_problem(hint, plain[k], k) for k, hint in annotations(target).items() if k in plain]
            assert [problem for problem in found if problem] == [], path
            checked += len(found)
    assert checked > 700


def annotations(target: Any) -> dict[str, Any]:
    return {name: parameter.annotation for name, parameter in inspect.signature(target).parameters.items()}
