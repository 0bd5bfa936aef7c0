"""Composed configs, and parsed files of configs, that all tests of a process share.

Hydra takes a tenth of a second for a composition, and the suite composes thousands. Configs of equal choices of groups
differ only in the values that are set afterwards. `test_compositions.py` compares both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig

from rankpo.config.places import CONFIG

Load = Callable[..., DictConfig]
OF_HYDRA: Load = ConfigLoaderImpl._load_configuration_impl
READ = ConfigRepository.load_config
PLACES = ("hydra.conf", str(CONFIG), "")  # Sources of Hydra's own configs, of config/, and of configs that are classes.


def share() -> None:
    """Lets all compositions of this process share what they have in common."""
    ConfigLoaderImpl._load_configuration_impl = remembering(OF_HYDRA)
    ConfigRepository.load_config = reading_once(READ)


def reading_once(read: Callable[..., ConfigResult | None]) -> Callable[..., ConfigResult | None]:
    """The reader of yaml files, which reads those of the project once. Other folders may change between two tests."""
    known: dict[str, ConfigResult | None] = {}

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if any(source.path not in PLACES for source in self.get_sources()):
            return read(self, config_path)
        if config_path not in known:
            known[config_path] = read(self, config_path)
        return copy.deepcopy(known[config_path])

    return load_config


def remembering(load: Load) -> Load:
    """The loader, which composes each choice of groups once. Runs of launch.py, and keys of hydra itself, go to `load`."""
    known: dict[Any, DictConfig] = {}

    def loaded(
        self: ConfigLoaderImpl,
        config_name: str,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        rest = (run_mode, from_shell, validate_sweep_overrides)
        if from_shell or any("hydra" in line for line in overrides):
            return load(self, config_name, overrides, *rest)
        parsed, repository = self._parse_overrides_and_create_caching_repo(config_name, overrides)
        values = [override for override in parsed if is_value(override, repository)]
        choices = [override.input_line for override in parsed if override not in values]
        if any(override.is_sweep_override() for override in parsed):
            return load(self, config_name, overrides, *rest)
        key = (str(self.config_search_path), config_name, tuple(choices))
        if key not in known:
            known[key] = load(self, config_name, choices, *rest)
        config = copy.deepcopy(known[key])
        self._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = list(overrides)
        return config

    return loaded


def is_value(override: Override, repository: CachingConfigRepository) -> bool:
    """Whether Hydra sets a value by this override, after it has composed the groups."""
    return isinstance(override.value(), dict) or not repository.group_exists(override.key_or_group)
