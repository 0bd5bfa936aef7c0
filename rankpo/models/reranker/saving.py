"""RerankerFolder: a transformers folder that sentence-transformers' CrossEncoder loads with equal scores.

The tokenizer in the folder contains the layout of a pair, so that `tokenizer(query, document)` gives the ids of
training in every library.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.model_card import card_of, origin
from rankpo.models.reranker.inputs import RerankerInputs
from rankpo.models.reranker.model import RerankerModel
from rankpo.models.reranker.settings import RerankerSettings
from rankpo.models.saving import ExportError, FolderFormat, merged, write_json

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
USE = """## Use

```python
import rankpo
model = rankpo.load("FOLDER")
model.compute_score([("a query", "a document")])
model.rank("a query", ["a document", "another"])

from sentence_transformers import CrossEncoder
CrossEncoder("FOLDER").predict([(PAIR)])

from transformers import AutoTokenizer
AutoTokenizer.from_pretrained("FOLDER")(PAIR)  # the ids of a pair, as trained on
```"""
PROBES = (
    ("what do moles eat?", "Moles eat earthworms, which they keep alive in larders below the ground."),
    ("a", "b"),
    ("what do moles eat?", "Mole is also a Mexican sauce."),
)


class RerankerFolder(FolderFormat[RerankerModel]):
    """The folder format of kind reranker.

    one_label: whether to convert the two answers of a causal language model to one linear head.
    """

    kind = "reranker"
    output = "scores"
    hint = (
        "; if the last token of a pair is the pad token, transformers cannot find it: set another model.suffix, or "
        "model.add_eos"
    )

    def __init__(self, one_label: bool = False) -> None:
        self.one_label = one_label

    def weights(self, model: RerankerModel) -> PreTrainedModel:
        weights = merged(model)
        if self.one_label:
            weights = to_one_label(weights, model.answers)
        if not self._reads_answers(model):
            activation = _activation(model.settings)
            weights.config.sentence_transformers = {"version": "5.1.0", "activation_fn": activation}
        return weights

    def tokenizer(self, model: RerankerModel) -> PreTrainedTokenizerBase:
        return pair_tokenizer(model.inputs)

    def settings(self, model: RerankerModel) -> Mapping[str, object]:
        settings = replace(model.settings, head="decoder") if self.one_label else model.settings
        return settings.to_json()

    def record(self, model: RerankerModel) -> Mapping[str, object]:
        layout = model.inputs.layout
        parts = {"before": layout.before, "between": layout.between, "after": layout.after}
        return {"layout": parts, "answers": model.answers}

    def beside(self, folder: Path, model: RerankerModel) -> None:
        if self._reads_answers(model):
            _write_logit_score(folder, model.answers, _activation(model.settings))

    def _reads_answers(self, model: RerankerModel) -> bool:
        """Whether the folder holds a causal language model."""
        return model.settings.head == "causal_lm" and not self.one_label

    @torch.inference_mode()
    def difference(self, folder: Path, model: RerankerModel) -> float:
        """Compares with the folder as transformers loads it, on single and on padded pairs."""
        causal = self._reads_answers(model)
        family: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        loaded = family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().to(model.device)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        prefixes = model.inputs.layout.query_prefix, model.inputs.layout.document_prefix
        pairs = [(prefixes[0] + query, prefixes[1] + document) for query, document in PROBES]
        ours = model.score_sequences(model.inputs.sequences_of(PROBES))

        def scores(batch: list[tuple[str, str]]) -> Tensor:
            queries, documents = map(list, zip(*batch, strict=True))
            encoded = tokenizer(queries, documents, padding=True, truncation=True, return_tensors="pt").to(model.device)
            logits = loaded(**encoded).logits.float()
            if not causal:
                return logits[:, 0].cpu()
            ends = encoded["attention_mask"].sum(1) - 1
            answers = logits[torch.arange(len(ends)), ends][:, list(model.answers)]
            return (answers[:, 0] - answers[:, 1] if len(model.answers) == 2 else answers[:, 0]).cpu()

        theirs = torch.stack([scores(pairs), torch.cat([scores([pair]) for pair in pairs])])
        return float((theirs - ours).abs().max())

    def card(self, model: RerankerModel, description: Mapping[str, object]) -> str:
        settings, layout = model.settings, model.inputs.layout
        kinds = {
            "encoder": "An encoder",
            "decoder": "A decoder with a linear score",
            "causal_lm": "A language model's yes",
        }
        pair = "query, document"
        if layout.query_prefix or layout.document_prefix:
            pair = f"{layout.query_prefix!r} + query, {layout.document_prefix!r} + document"
        about = (
            f"{kinds[settings.head]} that reads query and document together, {origin(description)}. Pairs up to "
            f"{settings.max_length} tokens; scores are "
            f"{'probabilities' if settings.activation == 'sigmoid' else 'logits'}."
        )
        tags = ["rankpo", "sentence-transformers", "cross-encoder"]
        return card_of(
            description, "sentence-transformers", "text-ranking", tags, [about, "", USE.replace("PAIR", pair)]
        )


def _activation(settings: RerankerSettings) -> str:
    return SIGMOID if settings.activation == "sigmoid" else IDENTITY


def to_one_label(model: PreTrainedModel, answers: tuple[int, ...]) -> PreTrainedModel:
    """Returns the model with one linear head: W[yes] - W[no], or W[yes] if there is only a yes word.

    Raises ExportError for output layers with a bias or a soft cap, which a linear head cannot reproduce.
    """
    output: Any = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if getattr(output, "bias", None) is not None or cap is not None:
        raise ExportError(
            f"{type(model).__name__} has a bias or soft cap in its output layer; set model.export_one_label=false"
        )
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    made = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=model.dtype)
    made.base_model.load_state_dict(model.base_model.state_dict())
    rows = output.weight.detach()[list(answers)].float()
    made.score.weight.data.copy_((rows[0] - rows[1] if len(answers) == 2 else rows[0])[None])
    return made.to(model.device).eval()


def pair_tokenizer(inputs: RerankerInputs) -> PreTrainedTokenizerBase:
    """Returns a copy of the tokenizer that encodes pairs in the model's layout, up to its maximum length.

    Callers must add the plain text of formats before query or document, since it is tokenised together with the text.
    """
    tokenizer = copy.deepcopy(inputs.tokenizer)
    tokenizer.model_max_length = inputs.settings.max_length
    layout = inputs.layout
    if layout.native:
        return tokenizer
    if not tokenizer.is_fast:
        raise ExportError(
            f"{type(tokenizer).__name__} does not support a custom layout of pairs; set model.separator=null"
        )

    around = SpecialTokens.learn(tokenizer)
    parts = {"before": layout.before, "between": layout.between, "after": layout.after}
    parts |= {"head": around.head, "tail": around.tail}
    names = {name: f"<rankpo_{name}>" if ids else "" for name, ids in parts.items()}
    special = [
        {"id": names[name], "ids": list(ids), "tokens": tokenizer.convert_ids_to_tokens(list(ids))}
        for name, ids in parts.items()
        if ids
    ]
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{names['head']} $A {names['tail']}".split(),
        pair=f"{names['before']} $A {names['between']} $B {names['after']}".split(),
        special_tokens=special,
    )
    # The model's own tokenizer class would restore its layout on loading, and a chat template would override it.
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=inputs.settings.max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side=tokenizer.truncation_side,
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    return plain


def _write_logit_score(folder: Path, answers: tuple[int, ...], activation: str) -> None:
    """Writes the files with which CrossEncoder reads the logits of the answers, given by their ids."""
    modules = [
        ("0", "", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1", "1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
    ]
    write_json(
        folder / "modules.json",
        [{"idx": int(name), "name": name, "path": path, "type": kind} for name, path, kind in modules],
    )
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "causal_logits",
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": activation, "prompts": {}, "default_prompt_name": None},
    )
    (folder / "1_LogitScore").mkdir()
    no_id = answers[1] if len(answers) == 2 else None
    write_json(
        folder / "1_LogitScore" / "config.json",
        {"true_token_id": answers[0], "false_token_id": no_id, "module_input_name": "causal_logits"},
    )
