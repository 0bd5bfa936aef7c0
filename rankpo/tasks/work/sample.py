"""The work of task=sample: completions of a causal language model for prompts, with resumption."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from rankpo.data.readers import files
from rankpo.data.readers.prompts import Asked, distinct, of_datasets, of_file
from rankpo.data.text.conversations import plain_text, prompt_record
from rankpo.errors import ConfigError
from rankpo.judges.records import Records
from rankpo.models.causal_lm.sampling import Completion, Draw, Sampling, TransformersWriter, VllmWriter, Writer
from rankpo.models.engine.positions import usable_positions
from rankpo.models.engine.vllm import choose_backend
from rankpo.models.reference import fingerprint_weights
from rankpo.runs import processes
from rankpo.runs.logger import MetricsLogger, counting
from rankpo.storage.atomic import replace_text
from rankpo.storage.json_files import read_json, write_json

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.models.causal_lm.config import CausalKind
    from rankpo.models.causal_lm.model import CausalLanguageModel
    from rankpo.tasks.sample import Sample
    from rankpo.tasks.session import Session

PARTS = "draws-*.jsonl"


def run(task: Sample, experiment: Experiment) -> dict[str, object]:
    """Returns the table's row on the first rank, and {} on the others."""
    session = task.open(experiment)
    asked = _asked(task, experiment.datasets)
    folder, main = Path(task.output), session.main
    with session.claimed(folder):
        started = time.monotonic()
        writer, settings = _writer(task, experiment, session)
        if main:
            _enter(folder, settings, experiment.overwrite)
        processes.barrier()
        completions = Completions(folder, asked, _draws(task, writer, asked), session.logger)
        completions.write(writer, task.generator or experiment.exp_name)
        processes.barrier()
        row = completions.finish(started) if main else {}
        processes.barrier()
    return row


def _asked(task: Sample, datasets: Sequence[Dataset]) -> list[Asked]:
    asked = distinct(of_datasets(datasets) if task.prompts is None else of_file(task.prompts))[: task.limit]
    if not asked:
        raise ConfigError([f"task.prompts={task.prompts} holds no prompt"])
    return asked


def _writer(task: Sample, experiment: Experiment, session: Session) -> tuple[Writer, dict[str, object]]:
    """The writer, and the settings that its completions depend on."""
    config = cast("CausalKind", experiment.model)
    accelerator, say = session.accelerator, session.logger.say
    inputs = config.open_inputs(say, experiment.explicit)
    sampling = Sampling(
        seed=experiment.seed,
        temperature=task.temperature,
        top_p=task.top_p,
        max_new_tokens=task.max_new_tokens,
    )
    settings = {**vars(sampling), "tokens": inputs.pieces().fingerprint, "control": inputs.settings.control_tokens}
    writer: Writer
    if choose_backend(task.backend, config) == "vllm":
        writer = VllmWriter(config, inputs, sampling, task.vllm)
        model = _fingerprint_files(config.origin, config.revision)
    else:
        built = config.build(inputs, say).to(accelerator.device)
        _check_positions(built, sampling)
        writer = TransformersWriter(built, sampling, task.max_tokens, accelerator.autocast)
        model = fingerprint_weights(built)
    say(f"{writer.name} generates the completions")
    return writer, {**settings, "backend": writer.name, "model": model}


def _draws(task: Sample, writer: Writer, asked: Sequence[Asked]) -> list[Draw]:
    ids = writer.reader.ids([item.prompt for item in asked])
    pairs = list(zip(asked, ids, strict=True))
    return [Draw(item.id, n, item.prompt, tokens) for item, tokens in pairs for n in range(task.num_samples)]


class Completions:
    """The completions of `draws` in a folder, finished and unfinished ones."""

    def __init__(self, folder: Path, asked: Sequence[Asked], draws: Sequence[Draw], logger: MetricsLogger) -> None:
        self.folder, self.asked, self.draws, self.logger = folder, asked, draws, logger

    def write(self, writer: Writer, generator: str) -> None:
        """Generates this rank's share of the missing completions, batch by batch. generator: the name in AlpacaEval."""
        known, draws = _known(self.folder, self.draws), self.draws
        datasets = {item.id: item.dataset for item in self.asked}
        own = writer.plan(draws)[processes.rank() :: processes.world_size()]
        # An incomplete batch is generated again as a whole, so that every row has the same padding.
        todo = [batch for batch in own if any(_key(draws[n]) not in known for n in batch)]
        self.logger.say(f"{len(draws)} completions of {len(self.asked)} prompts, {len(known)} of them written before")
        records: Records[Record] = Records(self.folder / PARTS.replace("*", str(processes.rank())), "key")
        try:
            with counting("sample", sum(map(len, todo)), shown=self.logger.main) as advance:
                for batch in todo:
                    several = [draws[n] for n in batch]
                    for draw, completion in zip(several, writer.write(several), strict=True):
                        if _key(draw) not in known:
                            records.add(_record(draw, completion, generator, datasets[draw.prompt_id]))
                    if advance is not None:
                        advance(len(batch))
        finally:
            records.close()

    def finish(self, started: float) -> dict[str, object]:
        """Writes samples.jsonl and alpaca_eval.json. Returns the table's row. started: a value of time.monotonic()."""
        known = _known(self.folder, self.draws)
        ordered = [known[_key(draw)] for draw in self.draws]
        replace_text(self.folder / "samples.jsonl", "".join(_json(_sample(record)) + "\n" for record in ordered))
        firsts = [_first(record) for record in ordered if record["sample_id"] == 0]
        replace_text(self.folder / "alpaca_eval.json", "[\n" + ",\n".join(map(_json, firsts)) + "\n]\n")
        row: dict[str, object] = {
            "prompts": len(self.asked),
            "completions": len(ordered),
            "ended by the model": sum(record["finished"] for record in ordered) / len(ordered),
            "tokens each": sum(record["tokens"] for record in ordered) / len(ordered),
            "empty": sum(not record["output"].strip() for record in ordered),
            "seconds": time.monotonic() - started,
        }
        self.logger.table([row], f"\n{self.folder / 'samples.jsonl'} written")
        return row


class Record(TypedDict):
    """A line of draws-*.jsonl: the keys of AlpacaEval and HALOs, and whether the model ended the completion."""

    key: str
    prompt_id: str
    sample_id: int
    prompt: object
    instruction: str
    output: str
    generator: str
    dataset: str
    tokens: int
    finished: bool


def _key(draw: Draw) -> str:
    return json.dumps([draw.prompt_id, draw.number], ensure_ascii=False)


def _record(draw: Draw, completion: Completion, generator: str, dataset: str) -> Record:
    return {
        "key": _key(draw),
        "prompt_id": draw.prompt_id,
        "sample_id": draw.number,
        "prompt": prompt_record(draw.prompt),
        "instruction": plain_text(draw.prompt),
        "output": completion.text,
        "generator": generator,
        "dataset": dataset,
        "tokens": completion.tokens,
        "finished": completion.finished,
    }


def _sample(record: Record) -> dict[str, object]:
    """A line of samples.jsonl."""
    return {
        "type": "sample",
        "prompt_id": record["prompt_id"],
        "prompt": record["prompt"],
        "output": record["output"],
        "finished": record["finished"],
        "sample_id": record["sample_id"],
        "dataset": record["dataset"],
    }


def _first(record: Record) -> dict[str, object]:
    """An entry of alpaca_eval.json."""
    return {
        "dataset": record["dataset"],
        "instruction": record["instruction"],
        "output": record["output"],
        "generator": record["generator"],
    }


def _known(folder: Path, draws: Sequence[Draw]) -> dict[str, Record]:
    """The stored records of these draws from all ranks, by key. Raises ConfigError if a prompt has changed."""
    found: dict[str, Record] = {}
    for path in sorted(folder.glob(PARTS)):
        for _, record in files.records(path):
            if isinstance(record, Mapping):  # An incomplete last line of a killed process is skipped.
                found[str(record["key"])] = cast("Record", record)
    kept = {}
    for draw in draws:
        record = found.get(_key(draw))
        if record is None:
            continue
        if record["prompt"] != prompt_record(draw.prompt):
            raise ConfigError(
                [
                    f"{folder}: prompt {draw.prompt_id!r} has changed since it was sampled; set overwrite=true, or another "
                    "task.output"
                ]
            )
        kept[_key(draw)] = record
    return kept


def _enter(folder: Path, settings: Mapping[str, object], overwrite: bool) -> None:
    """Prepares the folder. Raises ConfigError if it has other settings and overwrite is false."""
    path = folder / "settings.json"
    if overwrite:
        for old in (*folder.glob(PARTS), *folder.glob("settings.json")):
            old.unlink()
    if not path.exists():
        write_json(path, settings)
        return
    before = read_json(path)
    changed = sorted(name for name in settings if before.get(name) != settings[name])
    if changed:
        raise ConfigError(
            [f"{folder} was written with a different {', '.join(changed)}; set overwrite=true, or another exp_name"]
        )


def _check_positions(model: CausalLanguageModel, sampling: Sampling) -> None:
    limit = usable_positions(model.base, model.position_offset)
    longest = model.settings.max_prompt_length + (model.inputs.control is not None)
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise ConfigError(
            [
                f"task.max_new_tokens={sampling.max_new_tokens} and prompts of up to {longest} tokens exceed the model's "
                f"{limit} positions; lower task.max_new_tokens or model.max_prompt_length"
            ]
        )


def _fingerprint_files(name: str, revision: str | None) -> str:
    """The fingerprint of a folder's weights; a hub id is identified by its revision."""
    if not Path(name).is_dir():
        return f"{name}@{revision}"
    return files.content_fingerprint(sorted(Path(name).glob("*.safetensors")))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
