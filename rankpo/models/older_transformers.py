"""Compatibility of saved folders with transformers 4, which servers still use.

Without it, folders failed to load with infinity 0.0.78 on transformers 4.57 (2026-11-21).
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
    """Restores the old class name and the mapping of extra tokens, since transformers 4 fails on a list."""
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    return values


def _config(values: dict[str, object]) -> dict[str, object]:
    """Adds rope_theta: transformers 4 ignores rope_parameters and uses a base of 10,000, where Qwen has 1,000,000.

    Parameters per layer type (Gemma 3) stay unchanged, since transformers 4 has their usual values as defaults.
    """
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return values
    values["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return values
