"""OneLabelFamily: the class of transformers that loads rerankers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from rankpo.models.families import CAUSAL_LM as CAUSAL_LM
from rankpo.models.families import CLASSIFIER


class OneLabelFamily:
    """AutoModelForSequenceClassification of transformers, with one label if the checkpoint has no head.

    missing: the names of weights that the checkpoint lacks, known after loading.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []

    def from_pretrained(self, path: str, **arguments: object) -> tuple[PreTrainedModel, Mapping[str, Collection[str]]]:
        """Returns the model and transformers' report on loading."""
        shared = {name: arguments[name] for name in ("trust_remote_code", "token")}
        config = AutoConfig.from_pretrained(path, **shared)
        if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            config.num_labels = 1
        model, found = CLASSIFIER.from_pretrained(path, config=config, **arguments)
        self.missing = list(found["missing_keys"])
        return model, found

    def from_config(self, config: PreTrainedConfig, **arguments: object) -> PreTrainedModel:
        config.num_labels = 1
        return CLASSIFIER.from_config(config, **arguments)
