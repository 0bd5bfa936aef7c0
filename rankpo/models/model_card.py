"""The README.md of a saved model: what it is, how three libraries load it, what it was trained on, what it scores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.storage.printable import markdown

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def public_name(base_model: str | None) -> str | None:
    """A hub id as it is; of a path of this machine the folder's name alone."""
    is_path = base_model is not None and (Path(base_model).is_dir() or base_model.startswith((".", "/", "~")))
    return Path(base_model).name if base_model is not None and is_path else base_model


def title(description: Mapping[str, Any], default: str = "rankpo model") -> str:
    return f"# {markdown(str(description.get('exp_name', default)))}"


def origin(description: Mapping[str, Any]) -> str:
    """How a model was trained and from what, as the end of a sentence."""
    base = str(description.get("base_model") or "random weights")
    return f"trained with rankpo (loss {markdown(str(description.get('loss', '')))}) from {markdown(base)}"


def base_line(description: Mapping[str, Any]) -> list[str]:
    """The line of the card's head that names the base model, if it has a name that a hub could have."""
    base = str(description.get("base_model") or "")
    return [f"base_model: {base}"] if HUB_ID.fullmatch(base) else []


def card(settings: EmbeddingSettings, description: Mapping[str, Any]) -> str:
    """Markdown with the head that model hubs read. Holds no path of the machine it was made on."""
    base = [line for line in base_line(description) if "/" in line]  # a folder's name would be a dead link on a hub
    head = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        *base,
        "tags: [rankpo, sentence-transformers, feature-extraction]",
        "---",
    ]
    lines = [
        *head,
        title(description),
        "",
        f"A bi-encoder {origin(description)}.",
        f"{settings.pooling} pooling, {'normalised' if settings.normalize else 'not normalised'}; "
        f"queries up to {settings.query_max_length} tokens, passages up to {settings.passage_max_length}.",
        "",
        "## Use",
        "",
        "```python",
        "import rankpo",
        'model = rankpo.load("FOLDER")',
        'scores = model.encode(["a query"], role="query") @ model.encode(["a passage"]).T',
        "",
        "from sentence_transformers import SentenceTransformer",
        'model = SentenceTransformer("FOLDER")',
        'scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T',
        "",
        "from transformers import AutoModel, AutoTokenizer  # pool and normalise as stated above",
        'backbone, tokenizer = AutoModel.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")',
        "```",
        "",
        f"Query prompt: {markdown(json.dumps(settings.query_prompt))}. "
        f"Passage prompt: {markdown(json.dumps(settings.passage_prompt))}.",
        "",
        *training_list(description),
        *metrics_table(description),
        "## Limits",
        "",
        "Labels that come from an AI judge carry its biases; see the data above. The model card was written by a program.",
        "",
    ]
    return "\n".join(lines)


def training_list(description: Mapping[str, Any]) -> list[str]:
    rows = [
        f"- {name}: {markdown(str(description[name]))}"
        for name in ("data", "loss_values", "optimizer", "steps", "seed", "versions", "commit")
        if description.get(name) is not None
    ]
    return ["## Training", "", *rows, ""] if rows else []


def metrics_table(description: Mapping[str, Any]) -> list[str]:
    before, after = description.get("metrics_before") or {}, description.get("metrics_after") or {}
    if not after:
        return []
    rows = [f"| {markdown(name)} | {_number(before.get(name))} | {_number(value)} |" for name, value in after.items()]
    return ["## Metrics", "", "| metric | before | after |", "|---|--:|--:|", *rows, ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
