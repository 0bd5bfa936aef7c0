"""Adds peft adapters to a backbone: new adapters, or saved adapters from a folder."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from rankpo.errors import LoadingError
from rankpo.models.adapters import LoraSettings
from rankpo.models.advice import advised
from rankpo.models.loading import check_adapters


def open_adapters(backbone: PreTrainedModel, folder: str) -> PeftModel:
    """Wraps the backbone in the trainable adapters of a folder."""
    check_adapters(folder)
    with advised(folder, folder):
        return PeftModel.from_pretrained(backbone, folder, is_trainable=True)


def add_adapters(
    backbone: PreTrainedModel, lora: LoraSettings, task_type: str, modules_to_save: list[str] | None = None
) -> PeftModel:
    """Wraps the backbone in new adapters. task_type: peft's; modules_to_save: names of fully trained modules."""
    config = LoraConfig(
        task_type=task_type,
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        modules_to_save=modules_to_save,
    )
    tied = _tied_embeddings(backbone)
    try:
        adapted = get_peft_model(backbone, config)
    except ValueError as error:  # peft raises it with a text of several lines.
        raise LoadingError(
            f"model.peft.target_modules={lora.target_modules}: {str(error).splitlines()[0]}; "
            "use all-linear, which suits most models, or names of linear layers, such as [query,value]"
        ) from error
    if tied is not None and isinstance(backbone.get_input_embeddings(), BaseTunerLayer):
        raise LoadingError(
            f"model.peft.target_modules={lora.target_modules} puts adapters on {tied}, which shares its weights with "
            "the output head, so that merging would change both; remove it from the list"
        )
    return adapted


def _tied_embeddings(backbone: PreTrainedModel) -> str | None:
    """Returns the name of the input embeddings if they are tied to the output head, else None."""
    inputs, outputs = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return None
    return next(name for name, module in backbone.named_modules() if module is inputs)
