"""FINAL of a listwise reranker: a plain transformers folder with its template and identifiers; adapters merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.embedding.saving import SETTINGS_FILE, ExportError, merged
from rankpo.models.older_transformers import for_older_readers
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from rankpo.models.listwise.model import ListwiseModel

PROBE = ("a question", ("the first passage", "another, which is a little longer", "the last"))


def export_listwise(folder: Path, model: ListwiseModel, description: Mapping[str, Any]) -> float:
    """Writes FINAL whole, loads it with AutoModelForCausalLM and returns the largest difference of an identifier's
    logit. Raises ExportError if that exceeds 1e-4.

    description: loss, data, metrics and versions for rankpo.json and the card.
    """
    backbone, tokenizer = merged(model), model.tokenizer
    asked, given = backbone.config._attn_implementation, tokenizer.chat_template
    backbone.config._attn_implementation = "sdpa" if model.packed else asked
    tokenizer.chat_template = model.inputs.layout.chat.template  # the format that it was trained with
    own = model.inputs.layout.identifiers
    proved = {
        "scheme": own.scheme,
        "first": own.first,
        "later": own.later,
        "between": own.between,
        "prefix": own.prefix,
    }
    try:
        with written_whole(folder) as temporary:
            backbone.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            for_older_readers(temporary)
            record = {
                "kind": model.kind,
                "format": 1,
                "settings": model.settings.to_json(),
                "identifiers": proved,
                **description,
            }
            (temporary / SETTINGS_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            (temporary / "README.md").write_text(card(model, description))
            if model.has_adapters:
                adapters: Any = model.backbone
                adapters.save_pretrained(temporary / "adapter", safe_serialization=True)
                tokenizer.save_pretrained(temporary / "adapter")
    finally:
        backbone.config._attn_implementation = asked
        tokenizer.chat_template = given
    return verify(folder, model)


def verify(folder: Path, model: ListwiseModel, tolerance: float = 1e-4) -> float:
    """Largest difference between our identifier logits of a short list and the folder's own."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from rankpo.data.batch import join
    from rankpo.models.listwise.inputs import PASSAGE, QUERY

    inputs = model.inputs
    query, *passages = inputs.tokenize([QUERY + PROBE[0], *(PASSAGE + text for text in PROBE[1])])
    passages = passages[: model.settings.window]
    prompt = inputs.prompt(np.asarray(query), [np.asarray(ids) for ids in passages])
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    loaded.to(model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        ours = model(join([prompt])).logits[0]
        logits = loaded(input_ids=torch.from_numpy(prompt)[None].to(model.device)).logits[0, -1]
    model.train(training)
    difference = float((ours - logits[list(inputs.layout.identifiers.first)]).abs().max())
    if not difference <= tolerance:
        raise ExportError(f"{folder}: loaded again, logits differ by {difference:.1e}, more than {tolerance:.0e}")
    return difference


def card(model: ListwiseModel, description: Mapping[str, Any]) -> str:
    """Markdown with the head that model hubs read. Holds no path of the machine it was made on."""
    from rankpo.models.model_card import base_line, metrics_table, origin, title, training_list

    settings, own = model.settings, model.inputs.layout.identifiers
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-ranking",
        *base_line(description),
        "tags: [rankpo, listwise-reranker]",
        "---",
        title(description),
        "",
        f"A listwise reranker {origin(description)}. It reads up to "
        f"{settings.window} passages at once under the identifiers {own.open}{own.labels[0]}{own.close} to "
        f"{own.open}{own.labels[-1]}{own.close}, in prompts of at most {settings.max_length} tokens.",
        "",
        "```python",
        "import rankpo",
        'model = rankpo.load("FOLDER")',
        'model.rank("a query", ["a document", "another"])',
        "```",
        "",
        "Scores order the documents of one query. Where a list is longer than a window they are ranks, since logits of "
        "different windows are not comparable.",
        "",
        *training_list(description),
        *metrics_table(description),
    ]
    return "\n".join(lines)
