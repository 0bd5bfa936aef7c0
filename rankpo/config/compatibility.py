"""Compatibility checks of choices that are valid separately."""

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


# A loss can require these outputs of the kind, by the names of `Loss.needs` and `AnyKind.gives`.
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
STORED = ("cache_reference_logprobs", "load_reference_logprobs")  # keys that ask for stored reference scores


def incompatible(made: Mapping[str, Any], tree: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """One line for each problem.

    made: the objects of the config, None where one has problems of its own. tree: the config. overrides: the command
    line.
    """
    problems = list(_of_the_run(tree))
    model: AnyKind | None = made["model"]
    settings: TrainerSettings | None = made["settings"]
    # The loss has a default: a task that does not train must not be refused for it.
    task = made["task"]
    loss: Loss | None = made["loss"] if task is not None and task.trains else None
    if settings is not None:
        problems += _of_the_trainer(settings, model, loss)
    if loss is not None and tree["trainer"]["_target_"].endswith(".ContrastiveTrainer") and not _is_in_batch(loss):
        problems.append(f"trainer=contrastive cannot train {type(loss).__name__}; leave trainer out: loss=… chooses it")
    if model is not None and task is not None and (task.trains or task.needs) and (problem := _no_decoder(model)):
        problems.append(problem)
    if model is not None and loss is not None:
        problems += _unmet_needs(loss, model)
        if settings is not None:
            problems += _of_the_reference(tree, loss, model, settings)
        own = [item.loss for item in made.get("objectives") or [] if item is not None]
        problems += dict.fromkeys(problem for item in own for problem in _unmet_needs(item, model))
    if model is not None and (problem := other_kind(model, overrides)):
        problems.append(problem)
    return problems


def _of_the_run(tree: Mapping[str, object]) -> Iterator[str]:
    if "search" in tree:
        yield "search=optuna chooses the jobs of a sweep; start it with: python launch.py -m search=optuna …"
    if tree["resume"] not in (None, "auto"):
        yield f"resume must be auto or null, got {tree['resume']!r}"
    if not str(tree["exp_name"]).strip():
        yield "exp_name must not be empty: it names the run directory"
    for group in ("datasets", "eval_datasets", "replay_datasets"):
        if not isinstance(tree.get(group) or {}, Mapping):
            yield f"{group} must be a list of options, such as {group}=[jobs]"


def _of_the_trainer(settings: TrainerSettings, model: AnyKind | None, loss: Loss | None) -> Iterator[str]:
    if model is not None and settings.reference == "adapters" and not model.use_peft:
        yield "trainer.reference=adapters needs model.use_peft=true: there are no adapters to switch off"
    if loss is not None and model is not None and model.dtype == "bfloat16" and not model.use_peft:
        yield (
            "model.dtype=bfloat16 rounds the small steps of training away; set trainer.precision=bf16, whose weights are "
            "float32, or add model.use_peft=true"
        )
    if loss is not None and settings.precision == "fp16" and settings.max_grad_norm is None:
        yield "trainer.precision=fp16 needs trainer.max_grad_norm: overflowing updates are found by the norm"


def _no_decoder(model: AnyKind) -> str | None:
    """The question for a model where the default one, an encoder, cannot be of the kind."""
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
            yield f"{key}: {name} has no reference; leave it out"
        elif "live_reference" in needs:
            yield f"{key}: {name} needs the reference model itself, not stored scores"
        elif settings.reference not in ("auto", "stored"):
            yield f"{key} stores reference scores, and trainer.reference={settings.reference} does not; set auto"
    if len(asked) == len(STORED):
        yield "cache_reference_logprobs would compute what load_reference_logprobs brings; set one of them"
    if settings.reference == "stored" and "live_reference" in needs:
        yield (
            f"trainer.reference=stored: {name} needs the reference model itself, not stored scores; "
            "set trainer.reference=live, or auto"
        )
