"""Model cards: the README.md of a saved model, with its training data and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rankpo.storage.printable import markdown

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def public_name(base_model: str | None) -> str | None:
    """Returns a hub id unchanged, and for a local path the folder's name."""
    is_path = base_model is not None and (Path(base_model).is_dir() or base_model.startswith((".", "/", "~")))
    return Path(base_model).name if base_model is not None and is_path else base_model


def origin(description: Mapping[str, object]) -> str:
    """Returns the training method and base model, as the end of a sentence."""
    base = str(description.get("base_model") or "random weights")
    return f"trained with rankpo (loss {markdown(str(description.get('loss', '')))}) from {markdown(base)}"


def header(description: Mapping[str, object], library: str, task: str, tags: Sequence[str]) -> str:
    """The card's header, YAML that model hubs read: library, task, base model, licence, data sets and measured results.

    Hubs resolve the name of a base model, so a folder's name would be a dead link and is left out. description: may
    state `license` and `datasets` (hub ids), as task=push adds them.
    """
    base = str(description.get("base_model") or "")
    results = list(_results(description, task))
    data = ModelCardData(
        model_name=markdown(str(description.get("exp_name", "rankpo model"))) if results else None,
        library_name=library,
        pipeline_tag=task,
        base_model=base if HUB_ID.fullmatch(base) else None,
        license=_text(description.get("license")),
        datasets=_names(description.get("datasets")),
        tags=list(tags),
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(description: Mapping[str, object], task: str) -> Iterator[EvalResult]:
    """The metrics of the saved weights, named DATASET/METRIC."""
    measured = description.get("metrics_after")
    for name, value in measured.items() if isinstance(measured, Mapping) else ():
        dataset, _, metric = markdown(str(name)).partition("/")
        if metric and isinstance(value, int | float):
            yield EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=metric.replace("@", "_at_"),
                metric_name=metric,
                metric_value=float(value),
            )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _names(value: object) -> list[str] | None:
    return [str(item) for item in value] if isinstance(value, list | tuple) and value else None


def card_of(
    description: Mapping[str, object], library: str, task: str, tags: Sequence[str], about: Sequence[str]
) -> str:
    """Returns Markdown with the header for model hubs. about: lines on the model and its usage.

    description: must not contain local paths.
    """
    lines = [
        header(description, library, task, tags),
        f"# {markdown(str(description.get('exp_name', 'rankpo model')))}",
        "",
        *about,
        "",
        *training_list(description),
        *metrics_table(description),
        "## Limits",
        "",
        "Labels from an AI judge carry its biases; see the data above. rankpo generated this model card.",
        "",
    ]
    return "\n".join(lines)


def training_list(description: Mapping[str, object]) -> list[str]:
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
