"""ModelKind: the base class of model kinds, configured by the keys of `model=…` and `kind=…`.

A kind is one folder under rankpo/models with a `ModelKind` (config.py), its `Settings` (settings.py), its `Inputs`
(inputs.py), its `RankingModel` (model.py) and its `FolderFormat` (saving.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeAlias, TypeVar, cast

from rankpo.errors import ConfigError, LoadingError
from rankpo.models.adapters import LoraSettings
from rankpo.models.attention import used_attention
from rankpo.models.frozen import WeightForm, keep_layout
from rankpo.models.saved import Stated, own_statement
from rankpo.models.scale import HasScale
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.base import RankingModel
    from rankpo.models.families import Family
    from rankpo.models.inputs import Inputs
    from rankpo.models.loading import Source
    from rankpo.models.saving import FolderFormat

ATTENTION = ("sdpa", "flash_attention_2", "flex_attention", "eager")
LAYOUTS = ("auto", "packed", "padded")
GIVES = ("vectors", "parts", "token_logps", "lists", "pairs", "rewards", "text")
Say = Callable[[str], None]

# Covariant, so that each kind is an `AnyKind`; callers pass its methods only objects that the kind created.
SettingsT_co = TypeVar("SettingsT_co", bound=Settings, covariant=True)
InputsT_co = TypeVar("InputsT_co", bound="Inputs", covariant=True)
ModelT_co = TypeVar("ModelT_co", bound="RankingModel", covariant=True)


@dataclass(frozen=True, kw_only=True)
class ModelKind(HasScale, ABC, Generic[SettingsT_co, InputsT_co, ModelT_co]):
    """The source of the weights and the kind of model to build. Subclasses inherit the settings of their kind.

    The type parameters are the `Settings`, the `Inputs` and the `RankingModel` of the kind.

    kind: the name of the kind and of its folder. gives: the outputs of its models, out of `GIVES`; losses, tasks and
    evaluators declare their needs. logps: the conversion of scores to log-probabilities ("candidates": a softmax over
    a query's candidates; "sigmoid": per candidate; "none": scores are log-probabilities). settings_class: the
    `Settings` that the subclass inherits.

    name_or_path: a hub id or a folder. load_from: a run's FINAL folder, which overrides name_or_path. random: a
    model configuration for random weights, instead of both. layout: padded, packed, or auto, which means packed if the
    model supports it. chunk_tokens: tokens of one call of the backbone; None chooses by device. dtype, quantization:
    see `frozen.WeightForm`. peft: keys of `LoraSettings`.
    """

    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]]
    logps: ClassVar[str] = "candidates"
    settings_class: ClassVar[type[Settings]]
    decoders_only: ClassVar[bool] = False  # Whether the weights must be those of a decoder.
    takes_static: ClassVar[bool] = False  # Whether the weights may be token embeddings without layers.
    starts_from: ClassVar[frozenset[str]] = frozenset()  # Other kinds whose folders can provide the weights.

    name_or_path: str | None = None
    load_from: str | None = None
    revision: str | None = None
    random: Mapping[str, object] | None = None
    attn_implementation: str = "sdpa"
    layout: str = "auto"
    chunk_tokens: int | None = None
    compile: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    trust_remote_code: bool = False
    use_peft: bool = False
    peft: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random is None and self.name_or_path is None and self.load_from is None:
            raise ValueError("no source of weights is set; set name_or_path, load_from or random")
        if self.is_random and self.name_or_path is not None:
            raise ValueError("name_or_path and random are both set; set one of them to null")
        for name, allowed in (("attn_implementation", ATTENTION), ("layout", LAYOUTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or null, got {self.chunk_tokens}")
        if not isinstance(self.trust_remote_code, bool):
            raise ValueError(f"trust_remote_code must be true or false, got {self.trust_remote_code!r}")
        _ = self.lora, self.settings, self.weight_form

    @property
    def lora(self) -> LoraSettings:
        """The settings of adapters. Raises ValueError for an unknown key or value."""
        return LoraSettings.of(self.peft)

    @property
    def weight_form(self) -> WeightForm:
        """The dtype and quantisation of the weights. Raises ValueError for settings that exclude each other."""
        return WeightForm(self.dtype, self.quantization, self.use_peft, self.is_random)

    @property
    def settings(self) -> SettingsT_co:
        """The checked settings of the kind from the yaml and the command line."""
        values = {item.name: getattr(self, item.name) for item in fields(self.settings_class)}
        return cast("SettingsT_co", self.settings_class(**values))

    @property
    def continues_adapters(self) -> bool:
        """Whether training continues with the adapters of an earlier run."""
        return False

    @property
    def is_random(self) -> bool:
        return self.random is not None and self.load_from is None

    @property
    def origin(self) -> str:
        """The source of the weights, for messages."""
        return self.load_from or self.name_or_path or "random weights"

    def source(self) -> Source:
        """The folder or hub id of the weights, if they are not random. Raises LoadingError for a missing folder."""
        from rankpo.models import loading

        return loading.resolve(self.name_or_path or "", self.load_from, self.revision)

    def decodes(self) -> bool:
        """Whether the architecture of the weights is a decoder with causal attention."""
        from rankpo.models import architectures, loading

        name = str((self.random or {}).get("model_type")) if self.is_random else loading.model_type(self.source())
        return architectures.is_decoder(name)

    # Each kind implements the following methods.

    @abstractmethod
    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: SettingsT_co, say: Say) -> InputsT_co:  # type: ignore[misc]
        """Returns the inputs of the kind. Raises ValueError for settings that the tokenizer does not support."""

    @abstractmethod
    def load(self, inputs: InputsT_co, say: Say) -> PreTrainedModel:  # type: ignore[misc]
        """Loads the weights with the head of the kind, by `backbone`."""

    @abstractmethod
    def wrap(self, backbone: PreTrainedModel, inputs: InputsT_co) -> ModelT_co:  # type: ignore[misc]
        """Returns the `RankingModel` of the kind. Raises ValueError for an unsuitable backbone."""

    @abstractmethod
    def adapt(self, model: ModelT_co) -> PeftModel:  # type: ignore[misc]
        """The backbone of the model under new adapters, by `adapted`."""

    @abstractmethod
    def folder_format(self) -> FolderFormat[ModelT_co]:  # type: ignore[type-var]
        """Returns the folder format of the kind."""

    def stated(self, folder: Path) -> Stated | None:
        """Returns the settings in a folder, or None. Raises ValueError for a folder of another kind."""
        return own_statement(folder, (self.kind,), self.settings_class)

    def asked(self, explicit: Collection[str]) -> Collection[str]:
        """Returns the keys that override those of a saved folder. explicit: the keys of the command line."""
        return explicit

    def decided(self, settings: SettingsT_co) -> SettingsT_co:  # type: ignore[misc]
        """Returns the settings with every `auto` resolved by the architecture of the weights.

        Raises ConfigError for an architecture that this kind does not support.
        """
        return settings

    def require_decoder(self) -> None:
        """Raises ConfigError for an encoder, because its checkpoints have no trained next-token head."""
        if not self.decodes():
            raise ConfigError(
                [
                    f"{self.origin} is not a decoder, but kind={self.kind} needs one to generate text; choose a decoder, "
                    "such as model=llama, qwen or pythia, or add kind=embedding or kind=reranker"
                ]
            )

    def finish(self, model: ModelT_co, needs: frozenset[str], say: Say) -> None:  # type: ignore[misc]
        """Adds the parts that the loss needs to the built model."""

    # All kinds share the following methods.

    def open_inputs(self, say: Say, explicit: Collection[str] = ()) -> InputsT_co:
        """Returns the `Inputs` of the kind without loading weights, so that the data can be checked first.

        explicit: keys of the command line, which win over a folder's. Raises LoadingError for unsupported settings.
        """
        from rankpo.models import loading, random_weights, tokenizers

        stated = None
        if self.is_random:
            tokenizer: PreTrainedTokenizerBase = random_weights.byte_tokenizer()
        else:
            source = self.source()
            loading.check_folder(source, self.takes_static)
            stated = self._statement(Path(source.folder))
            tokenizer = loading.load_tokenizer(source, self.trust_remote_code)
            if stated is not None and stated.lower_case:
                tokenizers.lower_case(tokenizer)
        try:
            # Keys of the command line may contradict those of the folder.
            settings = self.settings if stated is None else self._with_stated(stated, explicit, say)
            return self.make_inputs(tokenizer, self.decided(settings), say)
        except ConfigError:
            raise
        except ValueError as error:
            raise LoadingError(f"{self.origin}: {error}") from error

    def _statement(self, folder: Path) -> Stated | None:
        """Returns the settings in the folder. Raises ConfigError or LoadingError for unreadable files."""
        try:
            return self.stated(folder)
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise LoadingError(str(error)) from error

    def _with_stated(self, stated: Stated, explicit: Collection[str], say: Say) -> SettingsT_co:
        """Merges the folder's settings, except for keys of the command line, and reports the sources."""
        settings, lines = self.settings.preferring(stated.values, self.asked(explicit), self.origin)
        for line in (*lines, *stated.notes):
            say(line)
        say(f"{self.origin}: {settings.in_words()} (from {stated.source})")
        return settings

    def build(
        self,
        inputs: InputsT_co,  # type: ignore[misc]
        say: Say,
        gradient_checkpointing: bool = False,
        needs: frozenset[str] = frozenset(),
    ) -> ModelT_co:
        """Returns the model on the CPU in float32. needs: the needs of the loss, see `Loss.needs`.

        Raises LoadingError if weights cannot be found, read or used.
        """
        backbone = self.load(inputs, say)
        keep_layout(backbone)
        inputs.check_vocabulary(backbone, self.origin)
        try:
            model = self.wrap(backbone, inputs)
        except ConfigError:
            raise
        except ValueError as error:
            raise LoadingError(f"{self.origin}: {error}") from error
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.take_adapters(self.adapt(model))
        if self.compile:
            model.compile_body(say)
        self.finish(model, needs, say)
        model.writer = self
        say(model.summary(self.origin, used_attention(backbone.config, self.attn_implementation)))
        return model

    def save(self, folder: Path, model: ModelT_co, description: Mapping[str, object]) -> float:  # type: ignore[misc]
        """Writes a folder atomically; see `saving.save`. Returns the largest difference of outputs after a reload."""
        from rankpo.models.saving import save

        own = type(self).__module__
        of_a_user = {} if own.startswith("rankpo.") else {"kind_class": f"{own}.{type(self).__name__}"}
        return save(folder, model, self.folder_format(), {**description, **of_a_user})

    def backbone(self, family: Family | None = None, say: Say | None = None) -> PreTrainedModel:
        """Loads the weights with the head of a transformers family; None: without a head. The weights are float32
        on the CPU, unless dtype or quantization sets a lower precision.

        say: reports an unused head of the checkpoint.
        """
        from rankpo.models import loading, random_weights

        if self.is_random:
            return random_weights.random_backbone(self.random or {}, self.attn_implementation, family)
        return loading.load_backbone(
            self.source(),
            attn_implementation=self.attn_implementation,
            form=self.weight_form,
            trust_remote_code=self.trust_remote_code,
            family=family,
            say=say,
        )

    def adapted(self, backbone: PreTrainedModel, task_type: str, modules_to_save: list[str] | None = None) -> PeftModel:
        """Wraps the backbone in new adapters. task_type: peft's; modules_to_save: names of fully trained modules."""
        from rankpo.models.adapting import add_adapters

        return add_adapters(backbone, self.lora, task_type, modules_to_save)


AnyKind: TypeAlias = "ModelKind[Settings, Inputs, RankingModel]"
