"""ListwiseFolder: a transformers folder for AutoModelForCausalLM, with the template and identifiers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rankpo.data.batch import join
from rankpo.models.listwise.inputs import PASSAGE, QUERY
from rankpo.models.listwise.model import ListwiseModel
from rankpo.models.model_card import card_of, origin
from rankpo.models.saving import FolderFormat

PROBE = ("a question", ("the first passage", "another, which is a little longer", "the last"))
USE = """```python
import rankpo
model = rankpo.load("FOLDER")
model.rank("a query", ["a document", "another"])
```

Scores order the documents of one query. For lists longer than a window, scores are derived from ranks, since logits \
of different windows are not comparable."""


class ListwiseFolder(FolderFormat[ListwiseModel]):
    """The folder format of kind listwise; differences are those of an identifier's logit."""

    kind = "listwise"
    output = "logits"

    def tokenizer(self, model: ListwiseModel) -> PreTrainedTokenizerBase:
        """Returns a copy of the tokenizer with the chat format of training."""
        other = copy.deepcopy(model.tokenizer)
        other.chat_template = model.inputs.layout.chat.template
        return other

    def record(self, model: ListwiseModel) -> Mapping[str, object]:
        own = model.inputs.layout.identifiers
        names = ("scheme", "first", "later", "between", "prefix")
        return {"identifiers": {name: getattr(own, name) for name in names}}

    @torch.no_grad()
    def difference(self, folder: Path, model: ListwiseModel) -> float:
        """Compares logits of a short list with those of the folder as transformers loads it."""
        inputs = model.inputs
        query, *passages = inputs.tokenize([QUERY + PROBE[0], *(PASSAGE + text for text in PROBE[1])])
        shown = [np.asarray(ids) for ids in passages[: model.settings.window]]
        prompt = inputs.prompt(np.asarray(query), shown)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        loaded.to(model.device)
        with model.evaluating():
            ours = model(join([prompt])).logits[0]
        logits = loaded(input_ids=torch.from_numpy(prompt)[None].to(model.device)).logits[0, -1]
        return float((ours - logits[list(inputs.layout.identifiers.first)]).abs().max())

    def card(self, model: ListwiseModel, description: Mapping[str, object]) -> str:
        settings, own = model.settings, model.inputs.layout.identifiers
        about = (
            f"A listwise reranker {origin(description)}. It reads up to {settings.window} passages at once "
            f"under the identifiers {own.open}{own.labels[0]}{own.close} to {own.open}{own.labels[-1]}{own.close}, in "
            f"prompts of at most {settings.max_length} tokens."
        )
        return card_of(description, "transformers", "text-ranking", ["rankpo", "listwise-reranker"], [about, "", USE])
