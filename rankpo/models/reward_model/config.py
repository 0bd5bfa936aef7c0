"""RewardKind: the configuration of decoders with one scalar reward for a whole completion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.models.causal_lm.config import CompletionKind
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.kind import Say
from rankpo.models.saved import Stated, has_classification_head, own_statement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.reward_model.model import RewardModel
    from rankpo.models.saving import FolderFormat


@dataclass(frozen=True, kw_only=True)
class RewardKind(CompletionKind["RewardModel"]):
    """A reward model. It starts from a causal language model, with a new head, or from a saved reward model."""

    kind: ClassVar[str] = "reward_model"
    gives: ClassVar[frozenset[str]] = frozenset({"rewards"})
    starts_from: ClassVar[frozenset[str]] = frozenset({"causal_lm"})
    logps: ClassVar[str] = "candidates"  # a softmax over the candidates converts rewards to log-probabilities

    def stated(self, folder: Path) -> Stated | None:
        """Also reads the settings of a causal language model, because a reward model can start from one."""
        return own_statement(folder, (self.kind, *self.starts_from), CausalSettings)

    def load(self, inputs: CompletionInputs, say: Say) -> PreTrainedModel:
        """Loads the decoder as a causal language model, whose output head a reward model does not use.

        A saved reward model is a classifier in transformers, so this method copies the weights of its decoder.
        """
        if not self._has_reward_head:
            return super().load(inputs, say)
        from rankpo.models.families import CAUSAL_LM

        classifier = self._classifier()
        attention = classifier.config._attn_implementation
        model = CAUSAL_LM.from_config(classifier.config, attn_implementation=attention, dtype=classifier.dtype)
        model.base_model.load_state_dict(classifier.base_model.state_dict())
        return model

    def wrap(self, backbone: PreTrainedModel, inputs: CompletionInputs) -> RewardModel:
        from rankpo.models.reward_model.model import RewardModel

        model = RewardModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)
        model.check_positions()
        if self._has_reward_head:
            model.take_head(self._classifier())
        return model

    def folder_format(self) -> FolderFormat[RewardModel]:
        from rankpo.models.reward_model.saving import RewardFolder

        return RewardFolder()

    @property
    def _has_reward_head(self) -> bool:
        return not self.is_random and has_classification_head(Path(self.source().path))

    def _classifier(self) -> PreTrainedModel:
        from rankpo.models.families import CLASSIFIER

        return self.backbone(CLASSIFIER)
