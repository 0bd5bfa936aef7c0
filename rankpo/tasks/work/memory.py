"""The memory plan of a training run, made before a strategy divides the model, and the budget that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rankpo.losses.in_batch import InBatchLoss
from rankpo.models.engine.dry_run import Pass
from rankpo.models.engine.kept_attention import bytes_per_token
from rankpo.models.reference import AdapterReference, LiveReference
from rankpo.runs import processes
from rankpo.runs.memory import free_bytes
from rankpo.tasks.optimizer import make_optimizer_of
from rankpo.trainers.in_batch import KEPT, is_long
from rankpo.trainers.memory import MemoryPlan, Sharing, activations_of, plan_of, state_per_byte
from rankpo.trainers.settings import AUTO, TrainerSettings
from rankpo.trainers.strategies.choose import name_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.tasks.work.lessons import Material
    from rankpo.trainers.objective import Objective
    from rankpo.types import Sequences

AUTO_TOKENS = 16384  # Tokens of the dry run that chooses max_tokens=auto.


def memory_parts(
    experiment: Experiment,
    model: RankingModel,
    materials: Sequence[Material],
    objectives: Sequence[Objective],
    accelerator: Accelerator,
    said: bool,
) -> dict[str, object]:
    """The arguments `settings` and `memory` of a trainer. said: whether this process tells the plan to the user."""
    settings, plan = experiment.settings, None
    if (said and settings.memory_plan) or settings.max_tokens == AUTO:
        plan = plan_of_run(experiment, model, materials, objectives, accelerator)
    return {"settings": with_budget(settings, plan, model.device.type), "memory": plan}


def plan_of_run(
    experiment: Experiment,
    model: RankingModel,
    materials: Sequence[Material],
    objectives: Sequence[Objective],
    accelerator: Accelerator,
) -> MemoryPlan:
    """Returns the plan of a run on this rank's device. The texts of its first update stand for all texts."""
    asked = experiment.settings.max_tokens
    tokens = AUTO_TOKENS if isinstance(asked, str) else asked
    training = model.training
    model.train()
    loader = materials[0].loader
    texts = model.inputs.collate(loader.table, loader.groups(0)).sequences
    references = {id(item.reference): item.reference for item in objectives if item.reference is not None}
    computed = any(isinstance(reference, LiveReference | AdapterReference) for reference in references.values())
    activations = activations_of(model, texts, Pass(accelerator.autocast, referenced=computed), tokens)
    if any(isinstance(item.loss, InBatchLoss) for item in objectives):
        activations = activations.with_more(_kept_attention(experiment, model, texts, tokens))
    model.train(training)
    return plan_of(
        model,
        [reference.model for reference in references.values() if isinstance(reference, LiveReference)],
        activations,
        state_per_byte(lambda weights: make_optimizer_of(experiment, weights), model.device),
        Sharing(strategy=name_of(accelerator), ranks=processes.world_size()),
        free_bytes(model.device),
    )


def _kept_attention(experiment: Experiment, model: RankingModel, texts: Sequences, tokens: int) -> float:
    """Bytes of the attention outputs that a gradient cache keeps, for each token of `trainer.max_tokens`."""
    twice = min(KEPT * tokens, texts.num_tokens - tokens)
    on_cpu = model.device.type == "cpu" and not experiment.settings.gradient_checkpointing
    return bytes_per_token(model.base) * twice / tokens if on_cpu and is_long(texts) and twice > 0 else 0.0


def with_budget(settings: TrainerSettings, plan: MemoryPlan | None, device: str) -> TrainerSettings:
    """Returns the settings with a number for max_tokens=auto, the same on all ranks. device: its type, such as cuda."""
    if settings.max_tokens != AUTO:
        return settings
    assert plan is not None
    return replace(settings, max_tokens=min(processes.gather_objects(plan.automatic(device))))
