"""FINAL of a reward model: a transformers folder for AutoModelForSequenceClassification with one label."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.causal_lm.final import final_settings, final_tokenizer
from rankpo.models.embedding.saving import SETTINGS_FILE, ExportError, merged
from rankpo.models.older_transformers import for_older_readers
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.models.causal_lm.value_head import RewardModel


def export_reward(folder: Path, model: RewardModel, description: Mapping[str, Any]) -> float:
    """Writes FINAL whole, loads it again and returns the largest difference of a reward.

    Raises ExportError if that exceeds 1e-4. description: loss, data, metrics and versions for rankpo.json and the card.
    """
    classifier = _classifier(model)
    tokenizer = final_tokenizer(model.inputs, model.kind)
    settings = final_settings(model.inputs, tokenizer)
    with written_whole(folder) as temporary:
        classifier.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        for_older_readers(temporary)
        record = {"kind": model.kind, "format": 1, "settings": settings, **description}
        (temporary / SETTINGS_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        (temporary / "README.md").write_text(_card(description))
    return _verify(folder, model)


def _classifier(model: RewardModel) -> PreTrainedModel:
    """The same decoder under transformers' own head. The pad token is left out where a text may end with it."""
    import torch
    from transformers import AutoModelForSequenceClassification

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


def _verify(folder: Path, model: RewardModel, tolerance: float = 1e-4) -> float:
    import torch
    from transformers import AutoModelForSequenceClassification

    from rankpo.types import Sequences

    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    ).eval()
    ids = torch.tensor(model.tokenizer("a few words to compare", add_special_tokens=False)["input_ids"])
    training = model.training
    model.eval()
    with torch.no_grad():
        ours = model(Sequences(ids, torch.tensor([len(ids)]))).cpu()
        difference = float((ours - loaded(input_ids=ids[None]).logits[0]).abs().max())
    model.train(training)
    if not difference <= tolerance:
        raise ExportError(f"{folder}: loaded again, a reward differs by {difference:.1e}, more than {tolerance:.0e}")
    return difference


def _card(description: Mapping[str, Any]) -> str:
    """Markdown with the head that model hubs read."""
    from rankpo.models.model_card import metrics_table, training_list

    base = str(description.get("base_model") or "random weights")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        *([] if base == "random weights" else [f"base_model: {base}"]),
        "tags: [rankpo]",
        "---",
        f"# {description.get('exp_name', 'rankpo reward model')}",
        "",
        f"A reward model trained with rankpo (loss {description.get('loss', '')}) from {base}. Its one logit, at the",
        "last token of a conversation, is the reward; only differences of rewards to one prompt mean something.",
        "",
        "```python",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoModelForSequenceClassification.from_pretrained("FOLDER")',
        'turns = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        'inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)',
        "reward = model(**inputs).logits[0, 0]",
        "```",
        "",
        *training_list(description),
        *metrics_table(description),
    ]
    return "\n".join(lines)
