"""Reader of rerankers in folders of rankpo and of all generations of sentence-transformers' CrossEncoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError
from rankpo.models.reranker.settings import RerankerSettings
from rankpo.models.saved import OLD_RERANKER_RECORD, RECORD, Stated, own_statement, read_json, statement_of
from rankpo.models.st_folders import (
    NEUTRAL,
    Module,
    check_keys,
    check_transformer,
    length_of,
    read_general,
    read_modules,
)

ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}
# Allowed keys of a CrossEncoder's Transformer.
CLASSIFIES = {
    **NEUTRAL,
    "transformer_task": ("sequence-classification",),
    "module_output_name": ("scores", "classification"),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "logits"}},),
}
OLD_ACTIVATION = "sbert_ce_default_activation_function"


def read_folder(folder: Path) -> Stated | None:
    """Returns the settings in rankpo's record, or else in a CrossEncoder's files, or else None.

    Raises ConfigError for settings with which scores would differ from those of CrossEncoder.
    """
    config = read_json(folder / "config.json")
    heads = [name for name in config.get("architectures") or [] if name.startswith(("LayerWise", "CostWise"))]
    if heads:
        raise ConfigError(
            [f"{folder}: {heads[0]} reads scores from several layers, which is not supported; choose another model"]
        )
    if old := read_json(folder / OLD_RERANKER_RECORD):
        settings = RerankerSettings.from_json(old["settings"], str(folder / OLD_RERANKER_RECORD))
        return statement_of(settings, OLD_RERANKER_RECORD)
    record = read_json(folder / RECORD)
    if record:
        return (
            None
            if record.get("kind") in ("causal_lm", "embedding")
            else own_statement(folder, ("reranker",), RerankerSettings)
        )
    general, modules = read_general(folder), read_modules(folder)
    inside = config.get("sentence_transformers") or {}
    if general.get("model_type") not in (None, "CrossEncoder") or (modules and not _reads_pairs(modules)):
        return None  # Another kind's weights get a new head.
    if not (general or modules or inside or OLD_ACTIVATION in config):
        return None
    if modules and modules[-1].name == "LogitScore":
        return _answers(modules[-1], folder)
    if modules:
        check_transformer(modules[0], CLASSIFIES)
    stated = general.get("activation_fn") or inside.get("activation_fn") or config.get(OLD_ACTIVATION)
    values = {"activation": _activation(stated, folder), **_prompt(general, folder)}
    length = length_of(modules[0] if modules else Module("Transformer", folder, {}))
    return Stated(
        values={**values, **({} if length is None else {"max_length": length})}, source="CrossEncoder's files"
    )


def _reads_pairs(modules: list[Module]) -> bool:
    names = [module.name for module in modules]
    task = modules[0].config.get("transformer_task")
    return names == ["Transformer", "LogitScore"] or (names == ["Transformer"] and task == "sequence-classification")


def _activation(stated: object, folder: Path) -> str:
    """Returns the stated activation, by default the sigmoid, as in CrossEncoder."""
    name = "Sigmoid" if stated is None else str(stated).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ConfigError([f"{folder}: activation {stated} is not supported; it must be identity or sigmoid"])
    return ACTIVATIONS[name]


def _prompt(general: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns the default prompt that CrossEncoder adds before every query."""
    chosen = general.get("default_prompt_name")
    prompt = (general.get("prompts") or {}).get(chosen) if chosen else None
    if not prompt:
        return {}
    if "{" in prompt or "}" in prompt:
        raise ConfigError([f"{folder}: the prompt {prompt!r} contains braces; write it into model.query_format"])
    return {"query_format": f"{prompt}{{}}"}


def _answers(module: Module, folder: Path) -> Stated:
    """Reads the settings of a language model with answer words, except for its formats, which the yaml must set."""
    check_keys(module.folder / "config.json", module.config, ("true_token_id", "false_token_id", "module_input_name"))
    readout = "yes" if module.config.get("false_token_id") is None else "difference"
    return Stated(
        values={"head": "causal_lm", "readout": readout},
        source="CrossEncoder's files",
        notes=(
            f"{folder}: the folder states no formats; model.query_format, model.document_format and model.suffix are used",
        ),
    )
