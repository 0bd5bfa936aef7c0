"""Groups of runs that differ only in their seed, the differences between groups, and the baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from rankpo.report.runs import Run, flat

# A run's name, its seed, and keys without effect on results: runs that differ only in these are one recipe.
NO_RECIPE = (
    *(
        "seed",
        "exp_name",
        "run_dir",
        "run_count",
        "runs_dir",
        "cache_dir",
        "overwrite",
        "resume",
        "tracker",
        "task",
        "search",
    ),
    *("debug", "hydra", "metrics_before", "metrics_after", "commit", "versions"),
)
# Order of the differing keys for readers; names of classes come last.
FIRST_SHOWN = ("loss", "optimizer", "trainer", "scheduler", "model", "replay_datasets", "datasets")
TAIL = re.compile(r"(?:[,/_\- ](?:seed|s))?[=,/_\- ]*$")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one recipe. number: gives its colour. differs: the config keys in which groups differ, with its values."""

    title: str
    number: int
    runs: Sequence[Run]
    differs: Mapping[str, object]

    @property
    def key(self) -> str:
        """Its name in the page's attributes."""
        return f"g{self.number}"

    @property
    def seeds(self) -> list[object]:
        """The seeds that the configs of its runs name."""
        return [run.config["seed"] for run in self.runs if "seed" in run.config]


def group_runs(runs: Sequence[Run], labels: Mapping[str, str]) -> list[Group]:
    """Groups runs by recipe, in the order of their first runs, groups without results last.

    labels: {run: title}; runs with one title are one group. Raises ValueError for a label of an unknown run.
    """
    unknown = sorted(set(labels) - {run.name for run in runs})
    if unknown:
        names = ", ".join(run.name for run in runs)
        raise ValueError(f"task.labels names {', '.join(unknown)}, which is not among the runs: {names}")
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_recipe(run, labels), []).append(run)
    members = sorted(
        found.values(), key=lambda of_group: not _has_results(of_group[0])
    )  # So that groups with results have the first colours.
    titles = _titles(members, labels)
    apart = _apart(members)
    return [
        Group(title=title, number=number, runs=of_group, differs=differs)
        for number, (title, of_group, differs) in enumerate(zip(titles, members, apart, strict=True))
    ]


def _has_results(run: Run) -> bool:
    return bool(run.steps or run.evaluations)


def _recipe(run: Run, labels: Mapping[str, str]) -> str:
    """Returns the key of a recipe: the label, the config, or the description in FINAL."""
    if run.name in labels:
        return f"label {labels[run.name]}"
    known = run.config or run.record
    if not known:
        return f"name {run.name}"
    return json.dumps(_recipe_keys(known), sort_keys=True, default=str)


def _recipe_keys(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in flat(config).items() if key.split(".")[0] not in NO_RECIPE}


def _titles(members: Sequence[Sequence[Run]], labels: Mapping[str, str]) -> list[str]:
    """Returns short, distinct titles: the label, the name of a single run, or the common prefix of names."""
    titles: list[str] = []
    for runs in members:
        title = labels.get(runs[0].name) or _common([run.name for run in runs])
        titles.append(title if title not in titles else f"{title} ({runs[0].name})")
    return titles


def _common(names: Sequence[str]) -> str:
    """Returns the common prefix of names without a trailing seed, or the first name if it is empty."""
    if len(names) == 1:
        return names[0]
    same = [letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))]
    start = "".join(same)
    if any(name[len(start) : len(start) + 1].isdigit() for name in names):
        start = start.rstrip("0123456789")  # For run_11 and run_12 the prefix is run_, not run_1.
    return TAIL.sub("", start) or names[0]


def _apart(members: Sequence[Sequence[Run]]) -> list[dict[str, object]]:
    """For each group, its values of the config keys in which the groups differ, those first in which it differs from
    the group that is most like it; {} for one without a config."""
    configs = [_recipe_keys(runs[0].config) for runs in members]
    found = []
    for config in configs:
        others = [_differing(config, other) for other in configs if other and other is not config]
        nearest = min(others, key=len, default=set())
        keys = sorted(set().union(*others), key=lambda key: (key not in nearest, *_importance(key)))
        found.append({key: config[key] for key in keys if key in config})
    return found


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> set[str]:
    """Returns the keys with different values, or with a value in only one of the configs."""
    keys = set(one) | set(other)
    return {key for key in keys if json.dumps(one.get(key), default=str) != json.dumps(other.get(key), default=str)}


def _importance(key: str) -> tuple[bool, int, str]:
    top, name = key.split(".")[0], key.rpartition(".")[2]
    place = FIRST_SHOWN.index(top) if top in FIRST_SHOWN else len(FIRST_SHOWN)
    return name in ("_target_", "name") and top != "loss", place, key


def start_of(runs: Sequence[Run]) -> Run | None:
    """Returns the run (stage one) from whose FINAL most others were trained, or None."""
    folders = {run.folder.resolve(): run for run in runs}
    counts: dict[Path, int] = {}
    for run in runs:
        loaded = run.config.get("model", {}).get("load_from")
        folder = Path(loaded).resolve() if isinstance(loaded, str) else None
        for candidate in (folder, folder.parent) if folder else ():
            if candidate in folders and folders[candidate] is not run:
                counts[candidate] = counts.get(candidate, 0) + 1
    if not counts:
        return None
    return folders[max(counts, key=lambda folder: counts[folder])]


def is_plain_rankpo(run: Run) -> bool:
    """Whether a run was trained only with RankPO's loss on pairs, without replay or regularisation to stage one."""
    loss = run.config.get("loss", {})
    keeping = ("replay_weight", "kl_weight", "sft_weight")
    return str(loss.get("_target_", "")).endswith("RankPOLoss") and not any(loss.get(name) for name in keeping)
