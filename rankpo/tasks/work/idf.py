"""The work of task=idf: inverse document frequencies of a vocabulary's tokens in a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.errors import ConfigError
from rankpo.models.inputs import TextInputs
from rankpo.retrieval.corpus import open_source
from rankpo.storage.atomic import replace_text

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.idf import Idf

TEXTS_AT_ONCE = 1024


def run(task: Idf, experiment: Experiment) -> dict[str, object]:
    """Returns the table's row."""
    source = open_source(task.corpus, "passage", experiment.datasets)
    logger = task.open(experiment).logger
    output = Path(task.output)
    if output.exists() and not experiment.overwrite:
        raise ConfigError([f"{output} already exists; set overwrite=true or another exp_name"])
    inputs = experiment.model.open_inputs(logger.say, experiment.explicit)
    assert isinstance(inputs, TextInputs)
    tokenizer = inputs.tokenizer
    size = max(tokenizer.get_vocab().values()) + 1
    frequencies, count = document_frequencies(inputs, (text for _, text in source.texts()), size)
    if not count:
        raise ConfigError([f"task.corpus={task.corpus} holds no passage"])
    weights = inverse(frequencies, count)
    special = set(tokenizer.all_special_ids)
    named = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number not in special)
    found = {token: float(f"{weights[number]:.9g}") for number, token in named}
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, json.dumps(found, ensure_ascii=False))
    seen = sum(bool(frequencies[number]) for number, _ in named)
    row: dict[str, object] = {"file": str(output), "passages": count, "tokens": len(named), "in the corpus": seen}
    logger.table([row])
    return row


def document_frequencies(inputs: TextInputs, texts: Iterable[str], size: int) -> tuple[np.ndarray, int]:
    """The number of passages with each token, [size] int64, and the number of passages.

    Tokens behind the maximum length do not count, since the model does not read them; prompts do not count either.
    """
    frequencies, count = np.zeros(size, dtype=np.int64), 0
    longest, left = inputs.max_length("candidate"), iter(texts)
    while part := list(islice(left, TEXTS_AT_ONCE)):
        for ids in inputs.tokenize(part):
            frequencies[np.unique(np.asarray(ids[:longest], dtype=np.int64))] += 1
        count += len(part)
    return frequencies, count


def inverse(frequencies: np.ndarray, count: int) -> np.ndarray:
    """log(1 + (N - n + ½)/(n + ½)) for n of N texts, as in Lucene's BM25 and for the static queries of
    https://arxiv.org/abs/2411.04403; a token of no text has the largest weight."""
    inverted: np.ndarray = np.log1p((count - frequencies + 0.5) / (frequencies + 0.5))
    return inverted
