"""Guard before Hydra, which rejects configs that contain secrets, run code, or send secrets to a foreign server.

A config can come from another person, as an experiment file or a folder of --config-dir. It can choose among this
program's classes and set their values. Values that run other code or send a secret must be on the command line.
"""

from __future__ import annotations

import inspect
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankpo.config.ranges import empty_ranges
from rankpo.errors import ConfigError
from rankpo.storage.secrets import is_secret_key, is_secret_name, known, looks_secret, redact, register

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath, SearchPathElement

CALLBACK = "hydra_plugins.rankpo_sweep_note.callback.SweepNote"
PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")
SAMPLER = re.compile(r"optuna\.samplers\.[A-Z]\w*Sampler")
LOGGING = re.compile(r"logging\.(StreamHandler|FileHandler|NullHandler|Formatter|Filter)|colorlog\.[A-Z]\w*Formatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# The log files of Hydra itself.
LOG_FILES = ("${hydra.runtime.output_dir}/${hydra.job.name}.log", "hydra-${hydra.job.name}.log")
BUILT = ("callbacks", "launcher", "sweeper", "hydra_logging", "job_logging")  # Nodes that Hydra instantiates.
OF_HYDRA_ITSELF = re.compile(r"hydra\.(overrides|runtime|help|hydra_help|job\.override_dirname)\b")
FROM_ENVIRONMENT = re.compile(r"oc\.env:\s*['\"]?(\w+)")
# These arguments of vllm.LLM are numbers and plain names. Others name classes to import, or formats with pickles.
PLAIN_VLLM = (
    "block_size|cpu_offload_gb|data_parallel_size|disable_custom_all_reduce|disable_log_stats|dtype|enable_chunked_prefill"
    "|enable_prefix_caching|enforce_eager|gpu_memory_utilization|kv_cache_dtype|max_model_len|max_num_batched_tokens"
    "|max_num_seqs|pipeline_parallel_size|quantization|seed|swap_space|tensor_parallel_size"
)
# Keys that run code from a model's repository, from a string, or from a file of another program.
TYPED = re.compile(
    r"(.*\.)?trust_remote_code|hydra\.launcher\.(setup|python|srun_args|additional_parameters|config_file)\b.*"
    rf"|hydra\.sweeper\.custom_search_space|(.*\.)?vllm\.(?!({PLAIN_VLLM})$).+"
)
DEFAULT_KEY = "OPENAI_API_KEY"  # The default of config/judge/openai.yaml.


@contextmanager
def guarded() -> Iterator[None]:
    """Checks every config that Hydra composes inside this context, before Hydra instantiates or writes any of it.

    Hydra 1.3 calls the targets of `hydra.callbacks` and of the logging configs before the program sees the config, and
    allows nearly any callable there. It also imports the packages of `hydra.searchpath` during composition. Hydra has no
    hook for a check, so this function wraps its loader. Raises ConfigError.
    """

    load, search = ConfigLoaderImpl.load_configuration, CachingConfigRepository.initialize_sources

    @wraps(load)
    def checked(*arguments: Any, **named: Any) -> DictConfig:
        try:
            config = load(*arguments, **named)
            given = signature(load).bind(*arguments, **named).arguments
        except KeyError as error:  # env_copy reads the environment during composition.
            raise ConfigError([f"hydra.job.env_copy is not allowed; {error} must be set in the shell"]) from error
        problems = [*foreign(config.hydra), *untyped(config), *_secrets_of(config)]
        if not problems and given["run_mode"] == RunMode.MULTIRUN:
            params = OmegaConf.select(config, "hydra.sweeper.params")
            problems = empty_ranges(config.hydra.overrides.task, params, given["self"])
        if problems:
            raise ConfigError(problems)
        return config

    @wraps(search)
    def folders_alone(self: CachingConfigRepository, search_path: ConfigSearchPath) -> None:
        if strange := [item.path for item in search_path.get_path() if not _is_folder(item)]:
            raise ConfigError(
                [f"hydra.searchpath: {place} is not allowed; it must be a folder that exists" for place in strange]
            )
        search(self, search_path)

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    CachingConfigRepository.initialize_sources = folders_alone  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
        CachingConfigRepository.initialize_sources = search  # type: ignore[method-assign]


def _is_folder(item: SearchPathElement) -> bool:
    """Whether an element of Hydra's search path is a folder, or belongs to Hydra or its plugins."""
    if not item.provider.startswith(("hydra.searchpath", "command-line")):
        return True
    scheme, separator, rest = item.path.partition("://")
    return (scheme == "file" or not separator) and Path(rest if separator else item.path).is_dir()


def foreign(hydra: Any) -> list[str]:
    """A problem for each key of the `hydra` node that names code outside its plugins, or sets environment variables."""
    node = hydra if isinstance(hydra, DictConfig) else OmegaConf.create(dict(hydra))
    problems = [f"{key} is not allowed; it must not refer to another part of the config" for key in _borrowed(node)]
    copied = list(OmegaConf.select(node, "job.env_copy") or ())  # Hydra has copied these into env_set.
    for key, value in leaves(OmegaConf.to_container(node, resolve=False), "hydra"):
        group, name = key.split(".")[1], key.rpartition(".")[2]
        if name == "_target_" and not _is_plugin(str(value), group):
            allowed = CALLBACK if group == "callbacks" else f"a class of {', '.join(PLUGINS)}"
            problems.append(f"{key}={value} is not allowed; it must be {allowed}")
        if group.endswith("logging"):
            problems += _logging_problems(key, name, str(value))
        if group == "launcher" and isinstance(value, str) and _has_control_character(node, key, value):
            problems.append(
                f"{key} is not allowed; it must not contain a line break, because it becomes a line of a job's script"
            )
        if key.startswith(("hydra.job.env_set", "hydra.job.env_copy")) and name not in copied:
            problems.append(f"{key} is not allowed; set the variable in the shell that starts the program")
    return problems


def _has_control_character(hydra: DictConfig, key: str, value: str) -> bool:
    """Whether a string has a control character, before or after interpolation."""
    texts = [value]
    if "${" in value:
        with suppress(OmegaConfBaseException, ValueError):
            texts.append(str(OmegaConf.select(hydra, key.removeprefix("hydra."))))
    return any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for text in texts for letter in text)


def _borrowed(hydra: DictConfig) -> Iterator[str]:
    """Keys of the nodes that Hydra instantiates whose value is an interpolation of a whole node, which is unchecked."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        names: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
        for name in names:
            key = f"{prefix}.{name}" if isinstance(node, DictConfig) else f"{prefix}[{name}]"
            with suppress(OmegaConfBaseException):  # Values that Hydra fills in later are strings.
                if OmegaConf.is_missing(node, name):
                    continue
                value = node[name]
                if OmegaConf.is_config(value):
                    yield from [key] if OmegaConf.is_interpolation(node, name) else walk(value, key)

    for group in BUILT:
        if group in hydra and not OmegaConf.is_missing(hydra, group):
            if OmegaConf.is_interpolation(hydra, group):
                yield f"hydra.{group}"
            elif OmegaConf.is_config(hydra[group]):
                yield from walk(hydra[group], f"hydra.{group}")


def _is_plugin(target: str, group: str) -> bool:
    """Whether a `_target_` is a class that a plugin of Hydra defines; names that its module imports are excluded."""
    if group == "callbacks":
        return target == CALLBACK
    if SAMPLER.fullmatch(target):
        return True
    module, _, name = target.rpartition(".")
    if not module.startswith(PLUGINS):
        return False
    try:
        found = vars(import_module(module)).get(name)
    except ImportError:
        return False
    return inspect.isclass(found) and found.__module__ == module


def _logging_problems(key: str, name: str, value: str) -> list[str]:
    if name in ("()", "class") and not LOGGING.fullmatch(value):
        return [f"{key}={value} is not allowed; it must be a class of logging or colorlog for the console"]
    if "://" in value and value.startswith(("ext:", "cfg:")) and value not in STREAMS:
        return [f"{key}={value} is not allowed; it must be one of {', '.join(STREAMS)}"]
    if name == "filename" and value not in LOG_FILES:
        return [f"{key}={value} is not allowed; it must be one of {', '.join(LOG_FILES)}"]
    return []


def untyped(config: DictConfig) -> list[str]:
    """A problem for each key that must be on the command line and that a config file sets instead.

    These are the keys that run code, and the address of the server that receives the judge's key.
    """
    tree: Any = OmegaConf.to_container(config, resolve=False)
    typed = {key: item.partition("=")[2] for key, item in _typed(tree["hydra"])}
    problems = [
        f"{key}={value} is set in a config file and runs code from outside this program; read that code, then set "
        f"{key} on the command line"
        for key, value in leaves(tree)
        if TYPED.fullmatch(key) and value not in (None, False, "false") and not _is_typed(key, typed)
    ]
    judge = tree.get("judge")
    if isinstance(judge, Mapping) and "base_url" in judge and judge["base_url"] != "???":
        variable = str(OmegaConf.select(config, "judge.api_key_env", throw_on_resolution_failure=False))
        files = [] if _is_typed("judge.base_url", typed) else [f"judge.base_url={redact(str(judge['base_url']))}"]
        if variable != DEFAULT_KEY and not _is_typed("judge.api_key_env", typed):
            files.append(f"judge.api_key_env={variable}")
        if files and os.environ.get(variable):
            problems.append(
                f"{' and '.join(files)}: a config file must not set the server that receives the key in ${variable}; set "
                f"{' and '.join(item.partition('=')[0] for item in files)} on the command line"
            )
    return problems


def _typed(hydra: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (key, override) pairs of the command line."""
    items = [*hydra["overrides"]["task"], *hydra["overrides"]["hydra"]]
    return [(item.lstrip("+~").split("=", 1)[0].split("@")[0], item) for item in items]


def _is_typed(key: str, typed: Mapping[str, str]) -> bool:
    """Whether the command line sets the key, or a mapping or list that holds it. The choice of a group does not count."""
    return any(
        key == given or (value.startswith(("{", "[")) and key.startswith((f"{given}.", f"{given}[")))
        for given, value in typed.items()
    )


def announced(overrides: Sequence[str]) -> str | None:
    """The notice for a command line that allows code from a model's repository, or None."""
    allowed = [
        item.lstrip("+")
        for item in overrides
        if re.fullmatch(r"\+{0,2}(.*\.)?trust_remote_code=(true|yes|on|1)", item, re.IGNORECASE)
    ]
    return f"{', '.join(allowed)}: Python code from the model's repository runs on this machine" if allowed else None


def _secrets_of(config: DictConfig) -> list[str]:
    """`secrets` of all parts of a config, before and after interpolation, and of the command line.

    The command line is needed for sweeps, whose values are not in the config and which Hydra writes to a file.
    """
    tree: Any = OmegaConf.to_container(config, resolve=False)
    plain = [(key, value) for key, value in leaves(tree) if not OF_HYDRA_ITSELF.match(key)]
    if found := secrets([*plain, *_typed(tree["hydra"])]):
        return found  # Keys that refer to these would repeat the problem.
    resolved = []
    for key, value in plain:
        if isinstance(value, str) and "${" in value:
            with suppress(OmegaConfBaseException, ValueError):
                resolved.append((key, OmegaConf.select(config, key)))
    return secrets(resolved)


def secrets(values: Sequence[tuple[str, object]]) -> list[str]:
    """A problem for each (key, value) that looks like a secret, or equals a secret of this process's environment."""
    judge = dict(values).get("judge.api_key_env")
    if isinstance(judge, str):
        register(judge)
    held = [value for _, value in known()]
    found = [redact(key) for key, value in values if _is_secret(key, value, held, judge)]
    return [
        f"{key} holds a secret, and configs are written to run directories and sent to trackers; set it in the "
        "environment (HF_TOKEN, WANDB_API_KEY, or the variable that judge.api_key_env names)"
        for key in dict.fromkeys(found)
    ]


def _is_secret(key: str, value: object, held: Sequence[str], judge: object) -> bool:
    if looks_secret(key) or any(secret in key for secret in held):
        return True
    if not isinstance(value, str) or not value:
        return False
    names = FROM_ENVIRONMENT.findall(value)
    return (
        looks_secret(value)
        or any(secret in value for secret in held)
        or any(is_secret_name(name) or name == judge for name in names)
        or is_secret_key(key.rpartition(".")[2])
    )


def leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The (dotted key, value) pairs of all leaves, which are neither mappings nor lists."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree
