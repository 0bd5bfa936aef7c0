"""Project that `rankpo init` writes: an experiment, twenty records, and a README with commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rankpo.data.generated.jobs import Jobs
from rankpo.errors import ConfigError
from rankpo.types import Example

TRAINED, HELD_OUT = 16, 4  # The numbers of training and evaluation records.

EXPERIMENT = """\
# @package _global_
# The settings of this project: each command takes them with --config-dir conf experiment=first.
defaults:
  - override /loss: contrastive        # config/loss has the others
  - override /model: minilm
  - override /datasets: [jsonl]
  - override /eval_datasets: [jsonl]
exp_name: first                        # its folder is runs/first
datasets:
  jsonl:
    path: data/train.jsonl
eval_datasets:
  jsonl:
    path: data/dev.jsonl
trainer:
  batch_size: 8
  epochs: 2
dataloader:
  num_negatives: 3
"""

README = """\
# A ranking model

`data/train.jsonl` has {trained} records, `data/dev.jsonl` {held_out}: a query, its positives and its negatives. Put your own records in
their place. `conf/experiment/first.yaml` has the settings. Run these commands in this folder, one after the other:

```bash
rankpo data data/train.jsonl
rankpo train --config-dir conf experiment=first
rankpo evaluate --config-dir conf experiment=first task.run=runs/first
rankpo report --config-dir conf experiment=first 'task.runs=[runs/first]'
```

The first command reports the content of the file. The second trains a model, which is then in `runs/first/FINAL`. The third measures it before and after
training, and the fourth writes `runs/first/report.html`. `rankpo --help` lists everything that can be chosen.
"""


def write(folder: Path) -> list[Path]:
    """Writes the project and returns its files. Raises ConfigError if one of them already exists."""
    examples = list(islice(Jobs(name="jobs", num_profiles=300, num_posts=60).examples(), TRAINED + HELD_OUT))
    texts = {
        folder / "conf" / "experiment" / "first.yaml": EXPERIMENT,
        folder / "data" / "train.jsonl": records(examples[:TRAINED]),
        folder / "data" / "dev.jsonl": records(examples[TRAINED:]),
        folder / "README.md": README.format(trained=TRAINED, held_out=HELD_OUT),
    }
    if present := [str(path) for path in texts if path.exists()]:
        raise ConfigError(
            [f"rankpo init does not overwrite files, and {', '.join(present)} already exists; give another folder"]
        )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def records(examples: Sequence[Example]) -> str:
    """The examples as JSON Lines of queries with positives and negatives."""
    rows = [
        {
            "query": example.query,
            "positives": [text for text, label in zip(example.candidates, example.relevance, strict=True) if label > 0],
            "negatives": [
                text for text, label in zip(example.candidates, example.relevance, strict=True) if label <= 0
            ],
        }
        for example in examples
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
