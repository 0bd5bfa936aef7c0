"""The keys of `model=…`, checked without loading anything, and the model they describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.settings import EmbeddingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.data.collate import EmbeddingInputs
    from rankpo.models.embedding import EmbeddingModel

ATTENTION = ("sdpa", "flash_attention_2", "eager")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) through peft."""

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise ValueError(f"peft.lora_r must be >= 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"peft.lora_dropout must be in [0, 1), got {self.lora_dropout}")


@dataclass(frozen=True, kw_only=True)
class EmbeddingModelConfig:
    """A bi-encoder: where its weights come from and how it reads and pools texts.

    Exactly one of name_or_path / load_from and random must say where weights come from. Settings that a folder
    carries (rankpo.json, or sentence-transformers' files) win over the yaml, and the command line over both.
    """

    kind = "embedding"

    name_or_path: str | None = None
    load_from: str | None = None
    revision: str | None = None
    random: Mapping[str, Any] | None = None
    pooling: str = "mean"
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 512
    passage_max_length: int = 512
    truncate_dim: int | None = None
    attn_implementation: str = "sdpa"
    layout: str = "auto"
    chunk_tokens: int | None = None
    compile: bool = False
    trust_remote_code: bool = False
    use_peft: bool = False
    peft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.random is None) == (self.name_or_path is None and self.load_from is None) and not self.load_from:
            raise ValueError("name_or_path or load_from, or else random, must say where the weights come from")
        if self.attn_implementation not in ATTENTION:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(ATTENTION)}, got {self.attn_implementation!r}"
            )
        if self.layout not in ("auto", "packed", "padded"):
            raise ValueError(f"layout must be one of auto, packed, padded, got {self.layout!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or null, got {self.chunk_tokens}")
        if not isinstance(self.trust_remote_code, bool):
            raise ValueError(f"trust_remote_code must be true or false, got {self.trust_remote_code!r}")
        _ = self.settings, self.lora

    @property
    def settings(self) -> EmbeddingSettings:
        names = [item.name for item in fields(EmbeddingSettings)]
        return EmbeddingSettings(**{name: getattr(self, name) for name in names if hasattr(self, name)})

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(**self.peft)

    def open_inputs(self, say: Callable[[str], None], explicit: Collection[str] = ()) -> EmbeddingInputs:
        """Tokenizer and settings, without any weight: data is read and checked with them first.

        explicit: keys given on the command line, which win over those saved in a `load_from` folder.
        """
        from rankpo.data.collate import EmbeddingInputs
        from rankpo.export import read_settings
        from rankpo.models import loading

        if self._is_random:
            return EmbeddingInputs(loading.byte_tokenizer(), self.settings)
        source = loading.resolve(self.name_or_path or "", self.load_from, self.revision)
        settings = self.settings
        saved = read_settings(Path(source.path)) if self.load_from else None
        if saved is not None:
            settings = _prefer(saved, settings, explicit, say, source.name)
        return EmbeddingInputs(loading.load_tokenizer(source, self.trust_remote_code), settings)

    def build(
        self, inputs: EmbeddingInputs, say: Callable[[str], None], gradient_checkpointing: bool = False
    ) -> EmbeddingModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read."""
        from rankpo.models.base import freeze_pooler
        from rankpo.models.embedding import EmbeddingModel

        backbone = self._load_backbone()
        model = EmbeddingModel(
            backbone, inputs.tokenizer, inputs.settings, layout=self.layout, chunk_tokens=self.chunk_tokens
        )
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.backbone = self._with_adapters(backbone)
            freeze_pooler(backbone)  # its new adapters too: no embedding uses it, and DDP waits for every gradient
        if self.compile:
            model.backbone.compile(dynamic=True)
        say(
            f"{self.load_from or self.name_or_path or 'random weights'}: "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f} M trained, "
            f"{'packed' if model.packed else 'padded'} {self.attn_implementation}"
        )
        return model

    @property
    def _is_random(self) -> bool:
        return self.random is not None and self.load_from is None

    def _load_backbone(self) -> PreTrainedModel:
        from rankpo.models import loading

        if self.random is not None and self.load_from is None:
            return loading.random_backbone(self.random, self.attn_implementation)
        source = loading.resolve(self.name_or_path or "", self.load_from, self.revision)
        return loading.load_backbone(
            source, attn_implementation=self.attn_implementation, trust_remote_code=self.trust_remote_code
        )

    def _with_adapters(self, backbone: PreTrainedModel) -> Any:
        from peft import LoraConfig, TaskType, get_peft_model

        lora = self.lora
        return get_peft_model(
            backbone,
            LoraConfig(
                task_type=TaskType.FEATURE_EXTRACTION,
                r=lora.lora_r,
                lora_alpha=lora.lora_alpha,
                lora_dropout=lora.lora_dropout,
                target_modules=lora.target_modules,
            ),
        )


def _prefer(
    saved: EmbeddingSettings,
    given: EmbeddingSettings,
    explicit: Collection[str],
    say: Callable[[str], None],
    folder: str,
) -> EmbeddingSettings:
    """The saved settings, with those keys of the given ones that the command line names."""
    changed = {}
    for item in fields(EmbeddingSettings):
        old, new = getattr(saved, item.name), getattr(given, item.name)
        if old == new:
            continue
        if item.name in explicit:
            changed[item.name] = new
            say(f"model.{item.name}={new!r} instead of {old!r}, with which {folder} was saved")
        else:
            say(f"{folder} was saved with {item.name}={old!r}: that is used, not the yaml's {new!r}")
    return replace(saved, **changed)


def saved_kind(folder: Path) -> str:
    """What a folder holds: as rankpo.json says, else by its classification head; all others are embedding models."""
    own, plain = folder / "rankpo.json", folder / "config.json"
    if own.exists():
        return str(json.loads(own.read_text())["kind"])
    architectures = json.loads(plain.read_text()).get("architectures") or [] if plain.exists() else []
    return "reranker" if any(name.endswith("ForSequenceClassification") for name in architectures) else "embedding"


def load_saved(path: str, device: str | None = None) -> Any:
    """See `rankpo.load`."""
    import torch

    from rankpo.models.build_listwise import ListwiseModelConfig
    from rankpo.models.build_reranker import RerankerModelConfig
    from rankpo.models.causal_config import CausalModelConfig
    from rankpo.models.loading import LoadingError
    from rankpo.models.reward_config import RewardModelConfig

    if not Path(path).is_dir():
        raise LoadingError(f"{path}: no such folder")
    families: dict[str, Callable[..., Any]] = {
        "embedding": EmbeddingModelConfig,
        "reranker": RerankerModelConfig,
        "listwise": ListwiseModelConfig,
        "causal_lm": CausalModelConfig,
        "reward_model": RewardModelConfig,
    }
    kind = saved_kind(Path(path))
    if kind not in families:
        raise LoadingError(f"{path}/rankpo.json: kind {kind!r}; this version loads {', '.join(families)}")
    config = families[kind](load_from=path)
    quiet: Callable[[str], None] = lambda message: None  # noqa: E731
    model = config.build(config.open_inputs(quiet), quiet)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
