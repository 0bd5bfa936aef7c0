"""RewardFolder: a transformers folder for AutoModelForSequenceClassification with one label."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rankpo.models.causal_lm.final import final_settings, final_tokenizer
from rankpo.models.causal_lm.saving import PROBE
from rankpo.models.model_card import card_of, origin
from rankpo.models.reward_model.model import RewardModel
from rankpo.models.saving import FolderFormat, merged
from rankpo.types import Sequences

USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
turns = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]
inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
reward = model(**inputs).logits[0, 0]
```"""


class RewardFolder(FolderFormat[RewardModel]):
    """The folder format of kind reward_model."""

    kind = "reward_model"
    output = "rewards"

    def weights(self, model: RewardModel) -> PreTrainedModel:
        """The same decoder under transformers' own head. The pad token is left out where a text may end with it."""
        backbone = merged(model)
        config = copy.deepcopy(backbone.config)
        config.num_labels = 1
        config._attn_implementation = "sdpa" if model.packed else config._attn_implementation
        pad, eos = model.tokenizer.pad_token_id, model.tokenizer.eos_token_id
        config.pad_token_id = None if pad == eos else pad
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        classifier.base_model.load_state_dict(backbone.base_model.state_dict())
        with torch.no_grad():
            classifier.score.weight.copy_(model.reward_head.linear.weight)
        return classifier

    def tokenizer(self, model: RewardModel) -> PreTrainedTokenizerBase:
        return final_tokenizer(model.inputs, whole_conversations=True)

    def settings(self, model: RewardModel) -> Mapping[str, object]:
        return final_settings(model.inputs, self.tokenizer(model))

    @torch.no_grad()
    def difference(self, folder: Path, model: RewardModel) -> float:
        """Compares the reward of a few tokens with that of the folder as transformers loads it."""
        loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        ).eval()
        loaded.to(model.device)
        ids = torch.tensor(model.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        with model.evaluating():
            ours = model(Sequences(ids, torch.tensor([len(ids)])))
        return float((ours - loaded(input_ids=ids[None].to(model.device)).logits[0]).abs().max())

    def card(self, model: RewardModel, description: Mapping[str, object]) -> str:
        about = (
            f"A reward model {origin(description)}. Its one logit, at the last token of a conversation, "
            "is the reward; only differences of rewards to one prompt mean something."
        )
        return card_of(description, "transformers", "text-classification", ["rankpo"], [about, "", USE])
