"""Reader of rerankers in folders of rankpo and of all generations of sentence-transformers' CrossEncoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from rankpo.models.reranker.pair_template import PairTemplate

ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}
# Allowed keys of a CrossEncoder's Transformer.
TEXT = {"method": "forward", "method_output_name": "logits"}
MESSAGES = tuple({"text": TEXT, "message": {**TEXT, "format": form}} for form in ("flat", "structured"))
CLASSIFIES = {
    **{name: allowed for name, allowed in NEUTRAL.items() if name != "processing_kwargs"},
    "transformer_task": ("sequence-classification",),
    "module_output_name": ("scores", "classification"),
    "modality_config": ({"text": TEXT}, *MESSAGES),
}
GENERATES = {**CLASSIFIES, "transformer_task": ("text-generation",), "module_output_name": ("causal_logits",)}
SOURCE = "CrossEncoder's files"
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
    transformer = modules[0] if modules else Module("Transformer", folder, {})
    length = length_of(transformer)
    limit: dict[str, object] = {} if length is None else {"max_length": length}
    stated = general.get("activation_fn") or inside.get("activation_fn") or config.get(OLD_ACTIVATION)
    activation = {"activation": _activation(stated, folder)}
    if modules and modules[-1].name == "LogitScore":
        return _answers(transformer, modules[-1], general, {**limit, **activation})
    if modules:
        check_transformer(transformer, CLASSIFIES)
    formats = _template(transformer, general).settings() if _renders(transformer) else _plain_pair(general, folder)
    return Stated(values={**activation, **formats, **limit}, source=SOURCE)


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


def _plain_pair(general: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns CrossEncoder's rule for long pairs, and the default prompt that it adds before every query."""
    truncation = {"truncation": "longest_first"}
    chosen = general.get("default_prompt_name")
    prompt = (general.get("prompts") or {}).get(chosen) if chosen else None
    if not prompt:
        return truncation
    if "{" in prompt or "}" in prompt:
        raise ConfigError([f"{folder}: the prompt {prompt!r} contains braces; write it into model.query_format"])
    return {**truncation, "query_format": f"{prompt}{{}}"}


def _renders(transformer: Module) -> bool:
    """Whether the tokenizer's chat template renders the pair. Raises ConfigError for other arguments of the tokenizer."""
    arguments = transformer.config.get("processing_kwargs") or {}
    if strange := [name for name in arguments if name != "chat_template"]:
        raise ConfigError([f"{transformer.folder}: processing_kwargs.{strange[0]} is not supported by rankpo"])
    return "message" in (transformer.config.get("modality_config") or {})


def _template(transformer: Module, general: Mapping[str, Any]) -> PairTemplate:
    """Opens the tokenizer, whose chat template renders the pair if `_renders`."""
    from rankpo.models.reranker.pair_template import PairTemplate  # Needs transformers, unlike other folders.

    if not _renders(transformer):
        return PairTemplate.of(transformer.folder, "", {}, structured=False)
    arguments = (transformer.config.get("processing_kwargs") or {}).get("chat_template") or {}
    structured = transformer.config["modality_config"]["message"]["format"] == "structured"
    prompt = (general.get("prompts") or {}).get(general.get("default_prompt_name")) or ""
    return PairTemplate.of(transformer.folder, prompt, arguments, structured)


def _answers(transformer: Module, module: Module, general: Mapping[str, Any], values: Mapping[str, object]) -> Stated:
    """Reads the settings of a language model with answer words. Formats that no template states come from the yaml.

    values: further settings of the folder.
    """
    folder = transformer.folder
    check_keys(module.folder / "config.json", module.config, ("true_token_id", "false_token_id", "module_input_name"))
    check_transformer(transformer, GENERATES)
    ids = [module.config["true_token_id"], module.config.get("false_token_id")]
    template = _template(transformer, general)
    formats = template.settings() if _renders(transformer) else {}
    words = template.answer_words([number for number in ids if number is not None], formats.get("suffix"))
    found = {
        **values,
        **formats,
        **dict(zip(("yes_word", "no_word"), words, strict=False)),
        "head": "causal_lm",
        "readout": "yes" if ids[1] is None else "difference",
    }
    note = (
        f"{folder}: the folder states no formats; model.query_format, model.document_format and model.suffix are used"
    )
    return Stated(values=found, source=SOURCE, notes=() if formats else (note,))
