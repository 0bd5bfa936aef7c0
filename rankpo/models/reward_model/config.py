"""A saved reward model, loaded again: FINAL of loss=bradley-terry on a causal language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankpo.models.causal_lm.config import CausalModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.causal_lm.value_head import RewardModel


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(CausalModelConfig):
    """load_from: a folder that `export_reward` wrote."""

    kind = "reward_model"
    gives = frozenset({"rewards"})
    starts_from = frozenset({"causal_lm"})

    def build(
        self, inputs: CompletionInputs, say: Callable[[str], None], gradient_checkpointing: bool = False
    ) -> RewardModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read."""
        import torch

        from rankpo.models.causal_lm.value_head import RewardModel

        model = RewardModel(super().build(inputs, say, gradient_checkpointing))  # type: ignore[arg-type]
        with torch.no_grad():
            model.reward_head.linear.weight.copy_(self._classifier().score.weight)
        return model

    def _decoder(self) -> PreTrainedModel:
        """The saved decoder under an output head of no use: rewards are read from its hidden states."""
        from transformers import AutoModelForCausalLM

        classifier = self._classifier()
        model: Any = AutoModelForCausalLM.from_config(
            classifier.config, attn_implementation=self.attn_implementation, dtype=classifier.dtype
        )
        model.base_model.load_state_dict(classifier.base_model.state_dict())
        return model

    def _classifier(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return self._backbone(AutoModelForSequenceClassification)
