"""The work of task=push: a card with licence and data sets, and the upload."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

from rankpo.models.hub import push
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.folders import MANIFEST, written_whole

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.push import Push


def run(task: Push, experiment: Experiment) -> str:
    """The address of the repository."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        with written_whole(folder) as place:  # The manifest is that of the changed card.
            shutil.copytree(task.source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, ".*"))
            (place / "README.md").write_text(_card(task), encoding="utf-8")
        address = push(folder, task.repo, private=task.private, revision=task.revision, endpoint=task.endpoint)
    MetricsLogger().say(f"{task.source} uploaded to {address}")
    return address


def _card(task: Push) -> str:
    """The card of the saved model with what the keys add to its header."""
    card = ModelCard.load(task.source / "README.md")
    if task.license is not None:
        card.data.license = task.license
    if task.datasets:
        card.data.datasets = list(task.datasets)
    return str(card)
