"""Adds peft adapters to a backbone: new adapters, or saved adapters from a folder."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from rankpo.errors import LoadingError
from rankpo.models.adapters import LoraSettings
from rankpo.models.loading import check_adapters


def open_adapters(backbone: PreTrainedModel, folder: str) -> PeftModel:
    """Wraps the backbone in the saved adapters of a folder, and makes them trainable."""
    check_adapters(folder)
    return PeftModel.from_pretrained(backbone, folder, is_trainable=True)


def add_adapters(
    backbone: PreTrainedModel, lora: LoraSettings, task_type: str, modules_to_save: list[str] | None = None
) -> PeftModel:
    """Wraps the backbone in new adapters.

    task_type: the task type of peft's `LoraConfig`. modules_to_save: names of modules whose full weights are trained.
    """
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
    except ValueError as error:  # The first line of peft's message states the problem.
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
