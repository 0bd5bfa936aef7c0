"""The work of task=inspect: a report of the content of datasets, and of the training items that a loss makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.inspection import first_example, inspect, lines, reading, words_as_tokens
from rankpo.data.prompted import Prompted
from rankpo.data.readers.hub import HubRecords
from rankpo.data.readers.passes import PassReport
from rankpo.data.readers.ranked_lists import RankedLists
from rankpo.data.readers.records import Records
from rankpo.data.report import Report
from rankpo.data.table import open_table
from rankpo.errors import ConfigError
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replace_text
from rankpo.tasks.work.lessons import lessons_of, weights
from rankpo.trainers.empty_updates import check

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset, Pieces
    from rankpo.data.table import ExampleTable
    from rankpo.tasks.inspect import Inspect
    from rankpo.tasks.work.lessons import Lesson


def run(task: Inspect, experiment: Experiment) -> Report:
    """Returns the content of `output`."""
    logger = MetricsLogger()
    datasets = [lenient(dataset) for dataset in experiment.datasets]
    pieces = _pieces(task, experiment, logger.say)
    try:
        table = open_table(experiment.cache_dir, datasets, pieces, logger.say)
    except ValueError as error:
        raise ConfigError([str(error), *why_nothing_is_left(datasets)]) from error
    report: Report = {
        "datasets": {data.name: _describe(task, table, number, data) for number, data in enumerate(datasets)},
    }
    lessons = lessons_of(experiment, datasets)
    if len(lessons) == 1:
        report["training"] = trained(experiment, lessons[0], table)
    else:
        tables = [open_table(experiment.cache_dir, lesson.datasets, pieces, logger.say) for lesson in lessons]
        parts = {lesson.name: trained(experiment, lesson, own) for lesson, own in zip(lessons, tables, strict=True)}
        said = [f"{name}: {line}" for name, part in parts.items() for line in part["said"]]
        report["training"] = {"datasets": parts, "said": said}
    _show(task, report, logger)
    replace_text(Path(task.output), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    logger.say(f"{Path(task.output)} written")
    return report


def _pieces(task: Inspect, experiment: Experiment, say: Callable[[str], None]) -> Pieces:
    return experiment.model.open_inputs(say, experiment.explicit).pieces() if task.tokens else words_as_tokens()


def _describe(task: Inspect, table: ExampleTable, number: int, dataset: Dataset) -> Report:
    met = PassReport(**table.meta["reports"].get(dataset.name, {}))
    found = inspect(table, number, "tokens" if task.tokens else "words")
    met.rows = met.rows or found["examples"]
    return {"read": reading(met), "holds": found, "first_example": first_example(next(iter(dataset.examples())))}


def _show(task: Inspect, report: Report, logger: MetricsLogger) -> None:
    rows, said = [], []
    for name, part in report["datasets"].items():
        read, found = part["read"], part["holds"]
        rows.append(
            {
                "dataset": name,
                "layout": ", ".join(read["layout"]) or "-",
                "good": read["good_records"],
                "bad": read["bad_records"],
                "queries": found["distinct_queries"],
                "positives": _span(found["positives_per_query"]),
                "negatives": _span(found["negatives_per_query"]),
                f"query {found['lengths']['unit']}": _span(found["lengths"]["query"], "p50"),
                f"text {found['lengths']['unit']}": _span(found["lengths"]["candidate"], "p50"),
            }
        )
        said += lines(name, read, found)
    logger.table(rows)
    for line in [*said, *report["training"]["said"]]:
        logger.say(line)


def _span(values: dict[str, int], first: str = "p5") -> str:
    """The quantile `first` and the maximum as a range, such as 1-10."""
    if not values:
        return "-"
    return f"{values[first]}-{values['max']}" if values[first] != values["max"] else str(values["max"])


def lenient(dataset: Dataset) -> Dataset:
    """The dataset, which then skips and lists bad records."""
    if isinstance(dataset, Prompted):
        return Prompted(lenient(dataset.inner), dataset.query_prompt, dataset.passage_prompt)
    return replace(dataset, on_bad_record="skip") if isinstance(dataset, Records | HubRecords) else dataset


def why_nothing_is_left(datasets: Sequence[Dataset]) -> list[str]:
    """The reasons why all records are bad, with counts, for the message of an empty dataset."""
    met = [(data.name, reading(data.report)) for data in datasets if isinstance(data, Records | RankedLists)]
    return [
        f"{name}: {item['records']:,} bad: {item['reason']} (first: {item['first']})"
        for name, read in met
        for item in read["bad"]
    ]


def trained(experiment: Experiment, lesson: Lesson, table: ExampleTable) -> Report:
    """The items and updates of an epoch for the loss of a lesson, or the reason why the loss cannot use the data."""
    loss, said = type(lesson.loss).__name__, list[str]()
    result: Report = {"loss": loss, "said": said}
    try:
        loader = lesson.dataloader.make(
            table=table,
            weights=weights(lesson.datasets),
            batch_size=experiment.settings.batch_size,
            seed=experiment.seed,
        )
        result |= {"items": len(loader.items), "updates_per_epoch": loader.updates_per_epoch}
        sizes = [len(group.candidates) for group in loader.groups(0)]
        result["candidates_per_item"] = [min(sizes), max(sizes)]
        updates = "1 update" if loader.updates_per_epoch == 1 else f"{loader.updates_per_epoch:,} updates"
        said.append(
            f"{loss} would train on {len(loader.items):,} items an epoch, in {updates} of "
            f"trainer.batch_size={experiment.settings.batch_size}, with {_counts(sizes)} candidates each"
        )
        check(lesson.loss, loader, said.append)
    except ValueError as error:  # ConfigError is a ValueError; the same errors stop task=train.
        result["refused"] = str(error)
        said.append(f"{loss} cannot train on this: {error}")
    return result


def _counts(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
