"""The configs that tests share are those of Hydra."""

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository

from rankpo.config.places import CONFIG
from tests.compositions import OF_HYDRA, READ, reading_once, remembering


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=rankpo", "model=minilm", "datasets=rankpo", "datasets.rankpo.path=a.jsonl", "loss.beta=2"],
        ["loss=dpo", "model=llama", "+model.random.extra=true", "~scheduler.warmup", "datasets=[chat]"],
        ["experiment=jobs_stage2", "loss.replay_weight=3", "++trainer.new_key=[1,2]", "optimizer=sgd"],
        ["task=evaluate", "eval_datasets=[jobs_dev]", "eval_datasets.jobs_dev.num_profiles=3"],
    ],
)
def test_they_equal_those_of_hydra(overrides, monkeypatch):
    def composed():
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            return compose("config", overrides=overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", OF_HYDRA)
    monkeypatch.setattr(ConfigRepository, "load_config", READ)
    expected = composed()
    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", remembering(OF_HYDRA))
    monkeypatch.setattr(ConfigRepository, "load_config", reading_once(READ))
    first, second = composed(), composed()
    assert first == expected and second == expected
    assert first is not second
