"""Trainer for supervised fine-tuning of causal language models on completions."""

from __future__ import annotations

from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.trainers.basic import BasicTrainer


class SFTTrainer(BasicTrainer):
    """Trains sft and csft: one completion per group, with the mean over all tokens of the update."""

    main_term = "sft"

    def check(self) -> None:
        if not isinstance(self.policy, CausalLanguageModel):
            raise ValueError(f"{type(self.loss).__name__} trains causal language models, not {self.policy.kind}")
        if "control_tokens" in self.loss.needs and self.policy.settings.control_tokens is None:
            raise ValueError("loss=csft needs model.control_tokens, such as ['<|good|>', '<|bad|>']")
