"""CausalFolder: a transformers folder for AutoModelForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rankpo.models.causal_lm.final import control_lines, final_generation_config, final_settings, final_tokenizer
from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.models.causal_lm.value_head import VALUE_HEAD_FILE
from rankpo.models.engine.token_logps import TokenRequest
from rankpo.models.model_card import card_of, origin
from rankpo.models.saving import FolderFormat
from rankpo.types import Sequences

PROBE = "a few words to compare"
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
turns = [{"role": "user", "content": "…"}]
inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
text = tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0])
```"""


class CausalFolder(FolderFormat[CausalLanguageModel]):
    """The folder format of kind causal_lm; differences are those of a token's log-probability, in nats."""

    kind = "causal_lm"
    output = "log-probabilities"

    def tokenizer(self, model: CausalLanguageModel) -> PreTrainedTokenizerBase:
        return final_tokenizer(model.inputs)

    def settings(self, model: CausalLanguageModel) -> Mapping[str, object]:
        return final_settings(model.inputs, self.tokenizer(model))

    def beside(self, folder: Path, model: CausalLanguageModel) -> None:
        final_generation_config(model.base, model.inputs).save_pretrained(folder)
        if model.value_head is not None:
            save_file(model.value_head.state_dict(), folder / VALUE_HEAD_FILE)

    @torch.no_grad()
    def difference(self, folder: Path, model: CausalLanguageModel) -> float:
        """Compares log-probabilities of a few tokens with those of the folder as transformers loads it."""
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        loaded.to(model.device)
        ids = torch.tensor(model.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        labels = ids.clone()
        labels[0] = -100
        with model.evaluating():
            ours = model(Sequences(ids, torch.tensor([len(ids)]), labels), TokenRequest()).logps
        ids = ids.to(model.device)
        theirs = loaded(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        return float((ours - theirs).abs().max())

    def card(self, model: CausalLanguageModel, description: Mapping[str, object]) -> str:
        about = (
            f"A causal language model {origin(description)}. Prompts up to {model.settings.max_prompt_length} "
            f"tokens, {model.settings.max_length} with the completion."
        )
        return card_of(
            description, "transformers", "text-generation", ["rankpo"], [about, *control_lines(model.inputs), "", USE]
        )
