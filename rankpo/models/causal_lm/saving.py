"""FINAL of a causal language model: a plain transformers folder; adapters merged, and beside it in adapter/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.causal_lm.final import control_lines, final_generation_config, final_settings, final_tokenizer
from rankpo.models.embedding.saving import SETTINGS_FILE, ExportError, merged
from rankpo.models.older_transformers import for_older_readers
from rankpo.storage.folders import written_whole

if TYPE_CHECKING:
    from rankpo.models.causal_lm.model import CausalLanguageModel


def export_causal(folder: Path, model: CausalLanguageModel, description: Mapping[str, Any]) -> float:
    """Writes FINAL whole, loads it again with AutoModelForCausalLM and returns the largest difference of a token's
    log-probability. Raises ExportError if that exceeds 1e-4 nats.

    description: loss, data, metrics and versions for rankpo.json and the card.
    """
    from safetensors.torch import save_file

    from rankpo.models.causal_lm.value_head import VALUE_HEAD_FILE

    backbone = merged(model)
    asked, generation = backbone.config._attn_implementation, backbone.generation_config
    tokenizer = final_tokenizer(model.inputs, model.kind)
    settings = final_settings(model.inputs, tokenizer)
    backbone.config._attn_implementation = "sdpa" if model.packed else asked
    backbone.generation_config = final_generation_config(backbone, model.inputs)
    try:
        with written_whole(folder) as temporary:
            backbone.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            for_older_readers(temporary)
            record = {"kind": model.kind, "format": 1, "settings": settings, **description}
            (temporary / SETTINGS_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            (temporary / "README.md").write_text(causal_card(model, description))
            if model.value_head is not None:
                save_file(model.value_head.state_dict(), temporary / VALUE_HEAD_FILE)
            if model.has_adapters:
                adapters: Any = model.backbone
                adapters.save_pretrained(temporary / "adapter", safe_serialization=True)
                tokenizer.save_pretrained(temporary / "adapter")
    finally:
        backbone.config._attn_implementation = asked
        backbone.generation_config = generation
    return verify(folder, model)


def verify(folder: Path, model: CausalLanguageModel, tolerance: float = 1e-4) -> float:
    """Largest difference in nats between our log-probabilities of a few tokens and the folder's own logits."""
    import torch
    from transformers import AutoModelForCausalLM

    from rankpo.models.engine.token_logps import TokenRequest
    from rankpo.types import Sequences

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    ids = torch.tensor(model.inputs.tokenizer("a few words to compare", add_special_tokens=False)["input_ids"])
    labels = ids.clone()
    labels[0] = -100
    training = model.training
    model.eval()
    with torch.no_grad():
        ours = model(Sequences(ids, torch.tensor([len(ids)]), labels), TokenRequest()).logps.cpu()
        theirs = loaded(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
    model.train(training)
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance:
        raise ExportError(
            f"{folder}: loaded again, log-probabilities differ by {difference:.1e}, more than {tolerance:.0e}"
        )
    return difference


def causal_card(model: CausalLanguageModel, description: Mapping[str, Any]) -> str:
    """Markdown with the head that model hubs read. Holds no path of the machine it was made on."""
    from rankpo.models.model_card import metrics_table, training_list

    base = str(description.get("base_model") or "random weights")
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    head += [] if base == "random weights" else [f"base_model: {base}"]
    lines = [
        *head,
        "tags: [rankpo]",
        "---",
        f"# {description.get('exp_name', 'rankpo model')}",
        "",
        f"A causal language model trained with rankpo (loss {description.get('loss', '')}) from {base}.",
        f"Prompts up to {model.settings.max_prompt_length} tokens, {model.settings.max_length} with the completion.",
        *control_lines(model.inputs),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'turns = [{"role": "user", "content": "…"}]',
        'inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        "text = tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0])",
        "```",
        "",
        *training_list(description),
        *metrics_table(description),
    ]
    return "\n".join(lines)
