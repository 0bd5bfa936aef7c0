"""Compatibility checks between choices that are valid separately."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rankpo.config.weights import other_kind

if TYPE_CHECKING:
    from rankpo.losses.base import Loss
    from rankpo.models.kind import AnyKind
    from rankpo.trainers.settings import TrainerSettings


class Given(NamedTuple):
    """A description of an output of model kinds, and the alternatives for kinds without it."""

    words: str
    attempt: str


# Outputs of a kind that a loss can require. The keys are the names in `Loss.needs` and `AnyKind.gives`.
GIVEN_BY_KINDS = {
    "token_logps": Given(
        "token log-probabilities", "Add kind=causal_lm with a decoder, such as model=llama, qwen or pythia."
    ),
    "vectors": Given(
        "embeddings",
        "Add kind=embedding; or try loss=softmax, which compares a positive with the candidates of its own list.",
    ),
    "parts": Given("scores of several parts", "Add kind=hybrid."),
    "lists": Given(
        "rankings of whole lists", "Add kind=listwise with a decoder, such as model=llama, qwen or mistral."
    ),
}
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # model=minilm
STORED = ("cache_reference_logprobs", "load_reference_logprobs")  # Keys that read or write stored reference scores.


def incompatible(made: Mapping[str, Any], tree: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Returns one line for each problem.

    made: the objects of the config; None for an object that could not be built. tree: the config. overrides: the command
    line.
    """
    problems = list(_of_the_run(tree))
    model: AnyKind | None = made["model"]
    settings: TrainerSettings | None = made["settings"]
    # The loss has a default, so a task that does not train must accept any loss.
    task = made["task"]
    loss: Loss | None = made["loss"] if task is not None and task.trains else None
    if settings is not None:
        problems += _of_the_trainer(settings, model, loss)
    if loss is not None and tree["trainer"]["_target_"].endswith(".ContrastiveTrainer") and not _is_in_batch(loss):
        problems.append(
            f"trainer=contrastive cannot train {type(loss).__name__}; remove trainer=…, because loss=… chooses the trainer"
        )
    if model is not None and task is not None and (task.trains or task.needs) and (problem := _no_decoder(model)):
        problems.append(problem)
    if model is not None and loss is not None:
        problems += _unmet_needs(loss, model)
        if settings is not None:
            problems += _of_the_reference(tree, loss, model, settings)
        own = [item.loss for item in made.get("objectives") or [] if item is not None]
        problems += dict.fromkeys(problem for item in own for problem in _unmet_needs(item, model))
    if model is not None and (problem := other_kind(model, loss, overrides)):
        problems.append(problem)
    return problems


def _of_the_run(tree: Mapping[str, object]) -> Iterator[str]:
    if "search" in tree:
        yield "search=optuna chooses the jobs of a sweep; start it with: python launch.py -m search=optuna …"
    if tree["resume"] not in (None, "auto"):
        yield f"resume must be auto or null, got {tree['resume']!r}"
    if not str(tree["exp_name"]).strip():
        yield "exp_name must not be empty, because it names the run directory"
    for group in ("datasets", "eval_datasets", "replay_datasets"):
        if not isinstance(tree.get(group) or {}, Mapping):
            yield f"{group} must be a list of options, such as {group}=[jobs]"


def _of_the_trainer(settings: TrainerSettings, model: AnyKind | None, loss: Loss | None) -> Iterator[str]:
    if model is not None and settings.reference == "adapters" and not model.use_peft:
        yield "trainer.reference=adapters needs adapters to disable; set model.use_peft=true"
    if loss is not None and model is not None and model.dtype == "bfloat16" and not model.use_peft:
        yield (
            "model.dtype=bfloat16 loses small updates by rounding; set trainer.precision=bf16, which keeps weights in "
            "float32, or add model.use_peft=true"
        )
    if loss is not None and settings.precision == "fp16" and settings.max_grad_norm is None:
        yield "trainer.precision=fp16 needs trainer.max_grad_norm, because the norm detects overflowing updates"


def _no_decoder(model: AnyKind) -> str | None:
    """The message to choose a model if the kind needs a decoder and the default model is an encoder; else None."""
    if not model.decoders_only or model.load_from is not None or model.name_or_path != DEFAULT_MODEL:
        return None
    return (
        f"model=minilm is an encoder, and kind={model.kind} needs a decoder; add model=llama, qwen, mistral, gemma or "
        f"pythia, or model=base model.name_or_path=NAME"
    )


def _is_in_batch(loss: Loss) -> bool:
    from rankpo.losses.in_batch import InBatchLoss

    return isinstance(loss, InBatchLoss)


def _unmet_needs(loss: Loss, model: AnyKind) -> Iterator[str]:
    """Returns a line per need of the loss that the model's kind does not satisfy."""
    chosen = model.name_or_path or "of random weights"
    for need, given in GIVEN_BY_KINDS.items():
        if need in loss.needs and need not in model.gives:
            yield (
                f"{loss.asked_by(need)} needs {given.words}; model {chosen} is of kind {model.kind} and gives none. "
                f"{given.attempt}"
            )


def _of_the_reference(
    tree: Mapping[str, object], loss: Loss, model: AnyKind, settings: TrainerSettings
) -> Iterator[str]:
    """Reports unused reference scores, and reference scores from two sources."""
    asked = [key for key in STORED if tree[key]]
    needs = loss.needs_with(model.gives)
    name = type(loss).__name__
    for key in asked:
        if "reference" not in needs:
            yield f"{key}: {name} has no reference; remove {key}"
        elif "live_reference" in needs:
            yield f"{key}: {name} needs the reference model itself, not stored scores"
        elif settings.reference not in ("auto", "stored"):
            yield f"{key} needs stored reference scores, and trainer.reference={settings.reference}; set trainer.reference=auto"
    if len(asked) == len(STORED):
        yield "cache_reference_logprobs computes the scores that load_reference_logprobs loads; set only one of them"
    if settings.reference == "stored" and "live_reference" in needs:
        yield (
            f"trainer.reference=stored: {name} needs the reference model itself, not stored scores; "
            "set trainer.reference=live, or auto"
        )
