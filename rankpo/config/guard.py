"""What a config must not hold: a secret, or something for Hydra to call that is none of its plugins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rankpo.errors import ConfigError

PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.", "optuna.samplers.")
LOGGING = re.compile(r"(logging(\.handlers)?|colorlog)\.[A-Z]\w*")  # a class, and no module that one of them imports
SECRET_NAME = r"(\w*_)?(TOKEN|KEY|SECRET|PASSWORD)"  # of an environment variable
SECRET_VALUE = r"[\w.+=:-]{12,}"  # of one: no path, and too long to stand in a config by chance
SECRET_KEYS = {"token", "hf_token", "access_token", "api_key", "apikey", "password", "secret", "authorization"}
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})"  # of hubs and services
    r"|://[^/\s:@]+:[^/\s@]+@"  # a password in an address
    rf"|\$\{{oc\.env:\s*{SECRET_NAME}\b"
)


@contextmanager
def guarded() -> Iterator[None]:
    """Every config that Hydra composes inside is looked at before Hydra makes anything of it or writes it down.

    Hydra 1.3 calls what `hydra.callbacks` and the logging configs name before the program sees the config, and allows
    nearly any callable there. It asks nobody: so its loader is wrapped.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    load = ConfigLoaderImpl.load_configuration

    @wraps(load)
    def looked_at(*arguments: Any, **named: Any) -> DictConfig:
        config = load(*arguments, **named)
        tree: Any = OmegaConf.to_container(config, resolve=False)
        hydra = tree.pop("hydra", None) or {}
        # of a sweep the config holds no value, and Hydra writes the command line down
        given = [(item.lstrip("+~").split("=", 1)[0], item) for item in hydra["overrides"]["task"]]
        if problems := [*foreign(hydra), *secrets([*leaves(tree), *given])]:
            raise ConfigError(problems)
        return config

    ConfigLoaderImpl.load_configuration = looked_at  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


def foreign(hydra: Mapping[str, Any]) -> list[str]:
    """What Hydra's own part of a config has it call and is no plugin of Hydra and no class of logging."""
    problems = []
    for key, value in leaves(hydra, "hydra"):
        group, name = key.split(".")[1], key.rpartition(".")[2]
        if name == "_target_" and not str(value).startswith(PLUGINS):
            problems.append(f"{key}={value} is not allowed; it must begin with {', '.join(PLUGINS)}")
        if group.endswith("logging") and name in ("()", "class") and not LOGGING.fullmatch(str(value)):
            problems.append(f"{key}={value} is not allowed; it must be a class of logging or colorlog")
    return problems


def secrets(values: Sequence[tuple[str, Any]]) -> list[str]:
    """A problem for each (key, value) that looks like a secret, or is one of this process's environment."""
    judge = dict(values).get("judge.api_key_env")
    known = [
        value
        for name, value in os.environ.items()
        if (re.fullmatch(SECRET_NAME, name) or name == judge) and re.fullmatch(SECRET_VALUE, value)
    ]
    found = [
        key
        for key, value in values
        if isinstance(value, str)
        and value
        and (
            SECRET.search(value)
            or any(secret in value for secret in known)
            or key.rpartition(".")[2].lower() in SECRET_KEYS
        )
    ]
    return [
        f"{key} holds a secret, and a config is written into run directories and sent to trackers; set it in the "
        "environment (HF_TOKEN, WANDB_API_KEY, or the variable that judge.api_key_env names)"
        for key in dict.fromkeys(found)
    ]


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is neither a mapping nor a list."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree
