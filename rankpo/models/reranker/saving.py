"""FINAL of a reranker: a plain transformers folder that sentence-transformers' CrossEncoder loads with equal scores.

The layout of a pair is written into the tokenizer, so that `tokenizer(query, document)` of any library gives the ids
that this model was trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.embedding.saving import SETTINGS_FILE, ExportError, merged, write_json
from rankpo.models.model_card import base_line, metrics_table, origin, title, training_list
from rankpo.models.older_transformers import for_older_readers
from rankpo.models.reranker.config import SETTINGS_FILE as RERANKER_FILE
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.reranker.inputs import RerankerInputs
    from rankpo.models.reranker.model import RerankerModel

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
PROBES = (
    ("what do moles eat?", "Moles eat earthworms, which they keep alive in larders below the ground."),
    ("a", "b"),
    ("what do moles eat?", "Mole is also a Mexican sauce."),
)


def export_reranker(folder: Path, model: RerankerModel, description: Mapping[str, Any]) -> None:
    """Writes FINAL whole: merged weights, tokenizer, settings, card; adapters beside in adapter/.

    description: loss, data, metrics and versions for rankpo.json and the card.
    """
    settings = model.settings
    weights = merged(model)
    asked = weights.config._attn_implementation
    causal = settings.head == "causal_lm"
    if model.one_label:
        weights, settings, causal = to_one_label(weights, model.answers), _replaced(model), False
    tokenizer = pair_tokenizer(model.inputs)
    activation = SIGMOID if settings.activation == "sigmoid" else IDENTITY
    try:
        weights.config._attn_implementation = "sdpa"
        if not causal:
            weights.config.sentence_transformers = {"version": "5.1.0", "activation_fn": activation}
        with written_whole(folder) as temporary:
            weights.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            for_older_readers(temporary)
            if causal:
                _write_logit_score(temporary, model.answers, activation)
            layout = model.inputs.layout
            own = {
                "settings": settings.to_json(),
                "layout": {"before": layout.before, "between": layout.between, "after": layout.after},
                "answers": model.answers,
                "format": 1,
            }
            write_json(temporary / RERANKER_FILE, own)
            write_json(temporary / SETTINGS_FILE, {"kind": "reranker", "format": 1, **description})
            (temporary / "README.md").write_text(card(model, description))
            if model.has_adapters:
                adapters: Any = model.backbone
                adapters.save_pretrained(temporary / "adapter", safe_serialization=True)
                tokenizer.save_pretrained(temporary / "adapter")
    finally:
        weights.config._attn_implementation = asked


def _replaced(model: RerankerModel) -> Any:
    from dataclasses import replace

    return replace(model.settings, head="decoder")


def to_one_label(model: PreTrainedModel, answers: tuple[int, ...]) -> PreTrainedModel:
    """The same model with one linear head: W[yes] - W[no], or W[yes] where only that is read.

    Raises ExportError for output layers with a bias or a soft cap, which one linear head cannot stand for.
    """
    from transformers import AutoModelForSequenceClassification

    output: Any = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if getattr(output, "bias", None) is not None or cap is not None:
        raise ExportError(
            f"{type(model).__name__} has a bias or soft cap behind its logits; set model.export_one_label=false"
        )
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    made = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=model.dtype)
    made.base_model.load_state_dict(model.base_model.state_dict())
    rows = output.weight.detach()[list(answers)].float()
    made.score.weight.data.copy_((rows[0] - rows[1] if len(answers) == 2 else rows[0])[None])
    return made.to(model.device).eval()


def pair_tokenizer(inputs: RerankerInputs) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose own encoding of a pair is the model's layout, and whose limit is its length.

    Formats with plain text in front of query or document stay with the caller: that text is one piece with theirs.
    """
    tokenizer = copy.deepcopy(inputs.tokenizer)
    tokenizer.model_max_length = inputs.settings.max_length
    layout = inputs.layout
    if layout.native:
        return tokenizer
    if not tokenizer.is_fast:
        raise ExportError(f"{type(tokenizer).__name__} cannot be given a layout of pairs; set model.separator=null")
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

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
    # a class of its own would put its usual layout back when it is loaded; a chat template would go before it
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=inputs.settings.max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    return plain


def _write_logit_score(folder: Path, answers: tuple[int, ...], activation: str) -> None:
    """The files by which CrossEncoder reads the answers' logits; ids are pinned, never looked up by word."""
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


@torch.inference_mode()
def verify_export(folder: Path, model: RerankerModel, tolerance: float = 1e-4) -> float:
    """Largest difference between our scores and the folder's, loaded by plain transformers, alone and padded.

    Raises ExportError if it exceeds `tolerance`.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    causal = model.settings.head == "causal_lm" and not model.one_label
    family: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    loaded = family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().to(model.device)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prefixes = model.inputs.layout.query_prefix, model.inputs.layout.document_prefix
    pairs = [(prefixes[0] + query, prefixes[1] + document) for query, document in PROBES]
    ours = model.score_sequences(model.inputs.sequences(PROBES))

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
    difference = float((theirs - ours).abs().max())
    if not difference <= tolerance:
        raise ExportError(
            f"{folder}: loaded again, scores differ by {difference:.2e}, more than {tolerance:.0e}; if the last token "
            "of a pair is the pad token, transformers cannot find it: set another model.suffix, or model.add_eos"
        )
    return difference


def card(model: RerankerModel, description: Mapping[str, Any]) -> str:
    """The README.md of a reranker: what it is, how three libraries score a pair with it, what it was trained on."""
    settings, layout = model.settings, model.inputs.layout
    kinds = {"encoder": "An encoder", "decoder": "A decoder with a linear score", "causal_lm": "A language model's yes"}
    pair = "query, document"
    if layout.query_prefix or layout.document_prefix:
        pair = f"{layout.query_prefix!r} + query, {layout.document_prefix!r} + document"
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: text-ranking",
        *base_line(description),
        "tags: [rankpo, sentence-transformers, cross-encoder]",
        "---",
        title(description),
        "",
        f"{kinds[settings.head]} that reads query and document together, {origin(description)}. Pairs up to {settings.max_length} tokens; scores are "
        f"{'probabilities' if settings.activation == 'sigmoid' else 'logits'}.",
        "",
        "## Use",
        "",
        "```python",
        "import rankpo",
        'model = rankpo.load("FOLDER")',
        'model.compute_score([("a query", "a document")])',
        'model.rank("a query", ["a document", "another"])',
        "",
        "from sentence_transformers import CrossEncoder",
        f'CrossEncoder("FOLDER").predict([({pair})])',
        "",
        "from transformers import AutoTokenizer",
        f'AutoTokenizer.from_pretrained("FOLDER")({pair})  # the ids of a pair, as trained on',
        "```",
        "",
        *training_list(description),
        *metrics_table(description),
        "## Limits",
        "",
        "Labels that come from an AI judge carry its biases; see the data above. The model card was written by a program.",
        "",
    ]
    return "\n".join(lines)
