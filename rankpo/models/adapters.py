"""Low-rank adapters: their settings, and a backbone under new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankpo.config.value_types import type_problems

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


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


def add_adapters(backbone: PreTrainedModel, lora: LoraSettings, task_type: str, **more: Any) -> PeftModel:
    """Wraps the backbone in new adapters. task_type: peft's; more: further keys of its LoraConfig."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from rankpo.models.loading import LoadingError

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
    except ValueError as error:  # peft raises it; its text is that of a trace
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


def _tied_embeddings(backbone: PreTrainedModel) -> str | None:
    """Returns the name of the input embeddings if they are tied to the output head, else None."""
    inputs, outputs = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return None
    return next(name for name, module in backbone.named_modules() if module is inputs)
