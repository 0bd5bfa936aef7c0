"""The main job, small: contrastive training, RankPO, and what each stage changed. `./install.sh demo`"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = (("stage one", "jobs_stage1"), ("aligned", "jobs_stage2"))
EVALUATION = ["eval_datasets=[jobs_test,jobs_preferences_test]", "eval_datasets.jobs_test.num_profiles=1000"]


def compose(overrides: Sequence[str]) -> Any:
    """A checked experiment from overrides, as launch.py would make it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from rankpo.build import check

    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return check(hydra_compose("config", overrides=list(overrides)), overrides)


def main(overrides: Sequence[str]) -> int:
    """Runs both stages and evaluates three models. overrides: added to every launch."""
    from rankpo.metrics import MetricsLogger

    started = time.monotonic()
    logger = MetricsLogger()
    folders: list[tuple[str, str | None]] = [("base", None)]
    for title, experiment in STAGES:
        logger.say(f"\n{title}: python launch.py experiment={experiment} overwrite=true")
        chosen = compose([f"experiment={experiment}", "overwrite=true", *overrides])
        chosen.task(chosen)
        folders.append((title, str(chosen.run_dir / "FINAL")))
    rows = []
    for title, folder in folders:
        chosen_model = [] if folder is None else [f"model.load_from={folder}"]
        command = [
            "task=evaluate",
            "model=minilm",
            f"exp_name=demo_{title.replace(' ', '_')}",
            *chosen_model,
            *EVALUATION,
        ]
        logger.say(f"\n{title}: python launch.py {' '.join(command)}")
        chosen = compose([*command, *overrides])
        rows.append({**chosen.task(chosen)[0], "model": title})
    table = summary(rows)
    target = chosen.cache_dir / "demo"
    target.mkdir(parents=True, exist_ok=True)
    (target / "results.json").write_text(json.dumps(rows, indent=1))
    text = logger.table(table, "\nRules: held-out corpus, graded. Judge: agreement on held-out pairs.")
    (target / "table.txt").write_text(text)
    logger.say(f"written to {target}, after {time.monotonic() - started:.0f} s")
    return 0


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns to look at: what the rules want beside what the judge wants."""
    columns = {
        "nDCG@20 (rules)": "jobs_test/ndcg@20",
        "MRR@10 (rules)": "jobs_test/mrr@10",
        "recall@100 (rules)": "jobs_test/recall@100",
        "agreement (judge)": "jobs_preferences_test/accuracy",
    }
    return [{"model": row["model"], **{title: row[name] for title, name in columns.items()}} for row in rows]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
