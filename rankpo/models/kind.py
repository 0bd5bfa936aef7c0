"""The keys that every `model=…` has: where weights come from, how they are run, and adapters on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rankpo.config.value_types import type_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.models.loading import Source

ATTENTION = ("sdpa", "flash_attention_2", "eager")
LAYOUTS = ("auto", "packed", "padded")
Say = Callable[[str], None]
Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) through peft."""

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        for problem in type_problems(LoraSettings, self.__dict__, "peft"):
            raise ValueError(problem)
        if self.lora_r < 1:
            raise ValueError(f"peft.lora_r must be >= 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"peft.lora_dropout must be in [0, 1), got {self.lora_dropout}")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """name_or_path: a hub id or a folder; load_from: a run's FINAL folder, which wins; random: a configuration of
    random weights, with neither. layout: padded, packed, or packed where the model can. chunk_tokens: tokens of one call
    pass, None for a number that suits the device. peft: keys of `LoraSettings`.
    """

    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]]
    logps: ClassVar[str]
    starts_from: ClassVar[frozenset[str]] = frozenset()  # other kinds whose saved folders it takes for plain weights

    name_or_path: str | None = None
    load_from: str | None = None
    revision: str | None = None
    random: Mapping[str, Any] | None = None
    attn_implementation: str = "sdpa"
    layout: str = "auto"
    chunk_tokens: int | None = None
    compile: bool = False
    trust_remote_code: bool = False
    use_peft: bool = False
    peft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random is None and self.name_or_path is None and self.load_from is None:
            raise ValueError("name_or_path or load_from, or else random, must say where the weights come from")
        if self._is_random and self.name_or_path is not None:
            raise ValueError("name_or_path and random both say where the weights come from; set one of them to null")
        for name, allowed in (("attn_implementation", ATTENTION), ("layout", LAYOUTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or null, got {self.chunk_tokens}")
        if not isinstance(self.trust_remote_code, bool):
            raise ValueError(f"trust_remote_code must be true or false, got {self.trust_remote_code!r}")
        _ = self.lora

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(**self.peft)

    @property
    def _is_random(self) -> bool:
        return self.random is not None and self.load_from is None

    @property
    def origin(self) -> str:
        """Where the weights come from, in messages."""
        return self.load_from or self.name_or_path or "random weights"

    def source(self) -> Source:
        """The folder or hub id of the weights, if they are not random. Raises LoadingError for no such folder."""
        from rankpo.models import loading

        return loading.resolve(self.name_or_path or "", self.load_from, self.revision)

    def decodes(self) -> bool:
        """Whether the architecture of the weights is a decoder's, which reads from left to right."""
        from rankpo.models import loading

        if self.random is not None and self._is_random:
            return loading.is_decoder(str(self.random.get("model_type")))
        return loading.is_decoder(loading.model_type(self.source()))

    def _require_decoder(self) -> None:
        """Raises LoadingError for an encoder, whose next-token head no checkpoint has trained."""
        from rankpo.models.loading import LoadingError

        if not self.decodes():
            raise LoadingError(
                f"{self.origin} is not a decoder, and a model of this kind continues texts; choose a decoder, such as "
                "model=llama, qwen or pythia, or add kind=embedding or kind=reranker"
            )

    def _backbone(self, family: Any = None) -> PreTrainedModel:
        """The weights in float32 on the CPU, under the head of a family of transformers; None: without a head."""
        from transformers import AutoModel

        from rankpo.models import loading

        family = family or AutoModel
        if self._is_random:
            return loading.random_backbone(self.random or {}, self.attn_implementation, family)
        return loading.load_backbone(
            self.source(),
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            family=family,
        )

    def _adapted(self, backbone: PreTrainedModel, task_type: str, **more: Any) -> Any:
        """The backbone under new adapters. task_type: peft's; more: further keys of its LoraConfig."""
        from peft import LoraConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        from rankpo.models.loading import LoadingError

        lora = self.lora
        config = LoraConfig(
            task_type=task_type,
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=lora.target_modules,
            **more,
        )
        tied = _tied_embeddings(backbone)
        try:
            adapted = get_peft_model(backbone, config)
        except ValueError as error:  # peft's own is one, and its text is a trace's
            raise LoadingError(
                f"model.peft.target_modules={lora.target_modules}: {str(error).splitlines()[0]}; "
                "all-linear suits most models, else give names of linear layers, such as [query,value]"
            ) from error
        if tied is not None and isinstance(backbone.get_input_embeddings(), BaseTunerLayer):
            raise LoadingError(
                f"model.peft.target_modules={lora.target_modules} puts adapters on {tied}, whose weights the output head "
                "shares: merged, they would change both; leave it out"
            )
        return adapted

    def summary(self, model: Any) -> str:
        """One line about a built model: origin, sizes, layout."""
        return (
            f"{self.origin}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f} M trained, "
            f"{'packed' if model.packed else 'padded'} {self.attn_implementation}"
        )


def _tied_embeddings(backbone: PreTrainedModel) -> str | None:
    """The name of the input embeddings, where the output head has the same weights."""
    inputs, outputs = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return None
    return next(name for name, module in backbone.named_modules() if module is inputs)


def prefer(saved: Settings, given: Settings, explicit: Collection[str], say: Say, folder: str) -> Settings:
    """The saved settings, with those keys of the given ones that are explicit: the command line names them."""
    changed = {}
    for item in fields(saved):
        old, new = getattr(saved, item.name), getattr(given, item.name)
        if old == new or (new == "auto" and item.name not in explicit):
            continue
        if item.name in explicit:
            changed[item.name] = new
            say(f"model.{item.name}={new!r} instead of {old!r}, with which {folder} was saved")
        else:
            say(f"{folder} was saved with {item.name}={old!r}: that is used, not the yaml's {new!r}")
    return replace(saved, **changed)
