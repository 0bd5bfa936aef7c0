"""What transformers 5 alone understands in a saved folder, said in the words of 4 too: servers still come with it.

Seen with infinity 0.0.78 on transformers 4.57 (2026-11-21): such a folder did not load there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def for_older_readers(folder: Path) -> None:
    """Rewrites tokenizer_config.json and config.json of a folder; transformers 5 reads the same model from both."""
    _rewrite(folder / "tokenizer_config.json", _tokenizer)
    _rewrite(folder / "config.json", _config)


def _rewrite(path: Path, change: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer(values: dict[str, object]) -> dict[str, object]:
    """The class has its old name again; 4 expects the names of extra tokens as a mapping, and fails on a list."""
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    return values


def _config(values: dict[str, object]) -> dict[str, object]:
    """4 passes over rope_parameters and takes a base of 10,000 without a word, where Qwen has 1,000,000.

    Parameters for each kind of layer (Gemma 3) stay as they are: 4 has their usual values built in.
    """
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return values
    values["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return values
