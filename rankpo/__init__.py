"""Train and align ranking models: bi-encoders, rerankers and causal language models, from one config tree.

`import rankpo` is fast, because each function imports heavy libraries such as torch only when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rankpo.runs.callbacks import Callback as Callback

__version__ = "0.1.0"


def load(path: str | Path, device: str | None = None) -> Any:
    """Loads a saved model from a hub id or a folder: a run's FINAL, or one of sentence-transformers or transformers.

    All models have `save` and `push_to_hub`. The other methods depend on the kind of the model:
    - Embedding model: `encode_query`, `encode_document`, `encode(texts, role)`, `predict(pairs)` and
      `rank(query, documents)`.
    - Reranker: `predict(pairs)`, `compute_score(pairs)` and `rank(query, documents)`.
    - Causal language model: `logps(prompts, completions)`.
    - Reward model: `rewards(prompts, completions)`.

    device: "cpu", "cuda", …; None selects a GPU if one is available. Raises LoadingError if loading fails.
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
    """Trains a model in this process, saves it to FINAL in the run directory, and returns it.

    The returned model has the methods that `load` lists.

    model: an option of config/model (minilm), a folder, a hub id, or a model that `load` or `train` returned.
    loss: an option of config/loss (contrastive), a subclass of `rankpo.losses.base.Loss`, or an instance of one.
    data, eval_data: records as mappings, a path (file, folder, glob), an option of config/datasets, a pandas DataFrame,
    a Hugging Face `datasets.Dataset`, or any object with `name`, `fingerprint()` and `examples()`.
    callbacks: instances of `rankpo.Callback`. overrides: strings as on the command line, "trainer.epochs=2".
    keys: values of the config. The name is a config group, with an option (kind="reranker") or a mapping of its keys
    (trainer={"epochs": 2}), or the last part of a key (lr=5e-5, epochs=2 for trainer.epochs). If exp_name is not given,
    each call creates a new run directory: runs/contrastive-1, runs/contrastive-2.

    The config is checked before data and weights are loaded. Raises ConfigError with one line for each problem.
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
    """Builds a training run without starting it, so that its objects can be inspected or changed.

    The arguments are those of `train`. The returned object has these attributes and methods:
    - `experiment`: the checked config.
    - `trainer`: its attributes are the policy, loss, loader, optimizer, schedule, evaluators and callbacks.
    - `train()`: trains and returns the model.
    """
    arguments = _arguments(model, loss, data, eval_data, callbacks, overrides, keys)
    return import_module("rankpo.api.training").build(arguments)


def _arguments(*values: object) -> object:
    names = ("model", "loss", "data", "eval_data", "callbacks", "overrides", "keys")
    return import_module("rankpo.api.training").Arguments(**dict(zip(names, values, strict=True)))
