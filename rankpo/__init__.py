"""Train and align ranking models: bi-encoders, rerankers and causal language models, from one config tree.

Importing this package does nothing; heavy libraries are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rankpo.runs.callbacks import Callback as Callback

__version__ = "0.1.0"


def load(path: str | Path, device: str | None = None) -> Any:
    """The saved model of a folder or hub id: a run's FINAL, or any sentence-transformers or classification folder.

    An embedding model has `encode_query`, `encode_document`, `encode(texts, role)`, `predict(pairs)` and
    `rank(query, documents)`; a reranker `predict(pairs)`, `compute_score(pairs)` and `rank`; a causal language model
    `logps(prompts, completions)`; a reward model `rewards(prompts, completions)`. All have `save` and `push_to_hub`.

    device: "cpu", "cuda", …; None takes a GPU if there is one. Raises LoadingError for what cannot be loaded.
    """
    return import_module("rankpo.models.load").load_saved(str(path), device)


def train(
    model: object = None,
    loss: object = None,
    data: object = None,
    eval_data: object = None,
    callbacks: Sequence[Callback] = (),
    overrides: Sequence[str] = (),
    **keys: object,
) -> Any:
    """Trains a model in this process, writes it to the run directory's FINAL, and returns it, as `load` does.

    model: an option of config/model (minilm), a folder, a hub id, or a model of `load` or of an earlier `train`.
    loss: an option of config/loss (contrastive), or a subclass of `rankpo.losses.base.Loss` or an object of one.
    data, eval_data: records as mappings, a path (file, folder, glob), an option of config/datasets, a table of pandas or
    of the library datasets, or a dataset of one's own with `name`, `fingerprint()` and `examples()`. callbacks: objects of
    `rankpo.Callback`. overrides: as on the command line, "trainer.epochs=2".
    keys: the config's keys: a group's option (kind="reranker"), a mapping of a group's keys (trainer={"epochs": 2}), or
    the last part of a key alone (epochs=2, batch_size=8, lr=5e-5, temperature=0.05). Without exp_name, each call makes
    another run: runs/contrastive-1, runs/contrastive-2.

    Raises ConfigError, with a line for each thing to change, before data and weights are loaded.
    """
    arguments = _arguments(model, loss, data, eval_data, callbacks, overrides, keys)
    return import_module("rankpo.api.training").train(arguments)


def build(
    overrides: Sequence[str] = (),
    *,
    model: object = None,
    loss: object = None,
    data: object = None,
    eval_data: object = None,
    callbacks: Sequence[Callback] = (),
    **keys: object,
) -> Any:
    """A training that has not begun, with every object to look at or to change; the arguments are those of `train`.

    `training.experiment` has the checked config; `training.trainer` has policy, loss, loader, optimizer, schedule,
    evaluators, callbacks; `training.train()` trains and returns the model.
    """
    arguments = _arguments(model, loss, data, eval_data, callbacks, overrides, keys)
    return import_module("rankpo.api.training").build(arguments)


def _arguments(*values: object) -> object:
    names = ("model", "loss", "data", "eval_data", "callbacks", "overrides", "keys")
    return import_module("rankpo.api.training").Arguments(**dict(zip(names, values, strict=True)))
