"""Composition of a config once in place of twice.

Hydra 1.3 composes the whole config to read `hydra.mode`, and composes it again to run the program. A composition takes a
tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

MULTIRUN_FLAGS = ("-m", "--multirun")


@contextmanager
def composed_once(arguments: Sequence[str]) -> Iterator[None]:
    """Lets Hydra run the program with the config from which it reads the mode, unless this is a sweep.

    arguments: those of the command line. An error of the composition is raised at once, where Hydra would compose a
    second time to raise it.
    """

    read_mode, load = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    composed: list[tuple[list[str], DictConfig]] = []

    @wraps(read_mode)
    def mode_of(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(override.is_sweep_override() for override in parsed):
            return read_mode(self, config_name, overrides)
        config = self.compose_config(config_name, overrides, run_mode=RunMode.RUN)
        if config.hydra.mode not in (None, RunMode.RUN):
            return config.hydra.mode
        composed.append((list(overrides), config))
        return RunMode.RUN

    @wraps(load)
    def loaded(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *rest: Any, **named: Any) -> Any:
        given, config = composed.pop() if composed else (None, None)
        return config if given == overrides else load(self, config_name, overrides, *rest, **named)

    if any(flag in arguments for flag in MULTIRUN_FLAGS):
        yield
        return
    Hydra.get_mode = mode_of  # type: ignore[method-assign]
    ConfigLoaderImpl.load_configuration = loaded  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Hydra.get_mode = read_mode  # type: ignore[method-assign]
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
