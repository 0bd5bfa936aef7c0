"""task=sample: completions of a causal language model for prompts, resumable at any moment; what a judge compares next."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.data.readers import files
from rankpo.data.text.conversations import plain_text, prompt_record
from rankpo.errors import ConfigError
from rankpo.models.engine.vllm import check_backend, choose_backend
from rankpo.storage.atomic import replace_text
from rankpo.storage.json_files import read_json, write_json
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.readers.prompts import Asked
    from rankpo.models.causal_lm.sampling import Completion, Draw, Sampling, Writer
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.base import Session

PARTS = "draws-*.jsonl"


@dataclass(frozen=True, kw_only=True)
class Sample(Task):
    """Writes `output`/samples.jsonl (HALOs' form, for task=annotate) and alpaca_eval.json (first completions).

    prompts: a file of prompts instead of the datasets' own; equal prompts are asked once. num_samples: completions of
    each. max_tokens: of a batch. backend: `transformers`, `vllm`, or `auto`. vllm: arguments of vllm.LLM. generator:
    AlpacaEval's name of the model, None for exp_name. What was written stands in draws-<rank>.jsonl before the next
    batch begins; started again, the task goes on, also with more samples, prompts or processes.
    """

    prompts: str | None = None
    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    max_tokens: int = 32768
    backend: str = "auto"
    vllm: Mapping[str, object] = field(default_factory=dict)
    generator: str | None = None
    limit: int | None = None
    output: str = "sample"

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_backend(self.backend)
        for name in ("num_samples", "max_new_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"temperature=0 writes equal completions; num_samples must be 1, got {self.num_samples}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.prompts is not None:
            files.find(self.prompts, "prompts")

    def __call__(self, experiment: Experiment) -> dict[str, object]:
        """The table's row; {} on other ranks than the first."""
        from rankpo.runs import processes

        session = self.open(experiment)
        logger = session.logger
        asked = self._asked(experiment.datasets)
        folder = Path(self.output)
        with session.claimed(folder):
            started = time.monotonic()
            writer, settings = self._writer(experiment, session)
            if logger.main:
                _enter(folder, settings, experiment.overwrite)
            processes.barrier()
            draws = self._draws(writer, asked)
            self._write_all(folder, writer, draws, asked, self.generator or experiment.exp_name, logger)
            processes.barrier()
            row = self._finish(folder, draws, asked, time.monotonic() - started, logger) if logger.main else {}
            processes.barrier()
        return row

    def _asked(self, datasets: Sequence[object]) -> list[Asked]:
        from rankpo.data.readers.prompts import distinct, of_datasets, of_file

        if self.prompts is None and not datasets:
            raise ConfigError(["datasets is empty and task.prompts is null; choose datasets with prompts, or a file"])
        asked = distinct(of_datasets(datasets) if self.prompts is None else of_file(self.prompts))[: self.limit]
        if not asked:
            raise ConfigError([f"task.prompts={self.prompts} holds no prompt"])
        return asked

    def _writer(self, experiment: Experiment, session: Session) -> tuple[Writer, dict[str, object]]:
        """The writer, and what its completions depend on beside their prompts."""
        from rankpo.models.causal_lm.sampling import Sampling, TransformersWriter, VllmWriter
        from rankpo.models.reference import fingerprint_weights

        config: Any = experiment.model
        accelerator, say = session.accelerator, session.logger.say
        inputs = config.open_inputs(say, experiment.explicit)
        sampling = Sampling(
            seed=experiment.seed,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
        )
        settings = {**vars(sampling), "tokens": inputs.pieces().fingerprint, "control": inputs.settings.control_tokens}
        writer: Writer
        if choose_backend(self.backend, config) == "vllm":
            writer = VllmWriter(config, inputs, sampling, self.vllm)
            model = _fingerprint_files(config.load_from or config.name_or_path, config.revision)
        else:
            built: Any = config.build(inputs, say).to(accelerator.device)
            _check_positions(built, sampling)
            writer = TransformersWriter(built, sampling, self.max_tokens, accelerator.autocast)
            model = fingerprint_weights(built)
        say(f"completions by {writer.name}")
        return writer, {**settings, "backend": writer.name, "model": model}

    def _draws(self, writer: Writer, asked: Sequence[Asked]) -> list[Draw]:
        from rankpo.models.causal_lm.sampling import Draw

        ids = writer.reader.ids([item.prompt for item in asked])
        pairs = list(zip(asked, ids, strict=True))
        return [Draw(item.id, n, item.prompt, tokens) for item, tokens in pairs for n in range(self.num_samples)]

    def _write_all(
        self,
        folder: Path,
        writer: Writer,
        draws: Sequence[Draw],
        asked: Sequence[Asked],
        generator: str,
        logger: MetricsLogger,
    ) -> None:
        from rankpo.judges.records import Records
        from rankpo.runs import processes
        from rankpo.runs.logger import counting

        known = _known(folder, draws)
        datasets = {item.id: item.dataset for item in asked}
        own = writer.plan(draws)[processes.rank() :: processes.world_size()]
        # a batch with anything left is written again as a whole, so that every row meets the same padding
        todo = [batch for batch in own if any(_key(draws[n]) not in known for n in batch)]
        logger.say(f"{len(draws)} completions of {len(asked)} prompts, {len(known)} of them written before")
        records = Records(folder / PARTS.replace("*", str(processes.rank())), "key")
        try:
            with counting("sample", sum(map(len, todo)), shown=logger.main) as advance:
                for batch in todo:
                    several = [draws[n] for n in batch]
                    for draw, completion in zip(several, writer.write(several), strict=True):
                        if _key(draw) not in known:
                            records.add(_record(draw, completion, generator, datasets[draw.prompt_id]))
                    if advance is not None:
                        advance(len(batch))
        finally:
            records.close()

    def _finish(
        self, folder: Path, draws: Sequence[Draw], asked: Sequence[Asked], seconds: float, logger: MetricsLogger
    ) -> dict[str, object]:
        known = _known(folder, draws)
        ordered = [known[_key(draw)] for draw in draws]
        names = ("prompt_id", "prompt", "output", "finished", "sample_id", "dataset")
        lines = [{"type": "sample", **{name: record[name] for name in names}} for record in ordered]
        replace_text(folder / "samples.jsonl", "".join(_json(line) + "\n" for line in lines))
        kept = ("dataset", "instruction", "output", "generator")
        firsts = [{name: record[name] for name in kept} for record in ordered if record["sample_id"] == 0]
        replace_text(folder / "alpaca_eval.json", "[\n" + ",\n".join(map(_json, firsts)) + "\n]\n")
        row = {
            "prompts": len(asked),
            "completions": len(ordered),
            "ended by the model": sum(record["finished"] for record in ordered) / len(ordered),
            "tokens each": sum(record["tokens"] for record in ordered) / len(ordered),
            "empty": sum(not record["output"].strip() for record in ordered),
            "seconds": seconds,
        }
        logger.table([row], f"\n{folder / 'samples.jsonl'} written")
        return row


def _key(draw: Draw) -> str:
    return json.dumps([draw.prompt_id, draw.number], ensure_ascii=False)


def _record(draw: Draw, completion: Completion, generator: str, dataset: str) -> dict[str, object]:
    """AlpacaEval's keys and HALOs', and how the completion ended."""
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


def _known(folder: Path, draws: Sequence[Draw]) -> dict[str, dict[str, Any]]:
    """What was written of these draws, by key, by whatever rank. Raises ConfigError where a prompt is another one now."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(PARTS)):
        for _, record in files.records(path):
            if isinstance(record, Mapping):  # a last line torn by a kill is none
                found[str(record["key"])] = dict(record)
    kept = {}
    for draw in draws:
        record = found.get(_key(draw))
        if record is None:
            continue
        if record["prompt"] != prompt_record(draw.prompt):
            raise ConfigError(
                [
                    f"{folder}: prompt {draw.prompt_id!r} was another one when it was sampled; set overwrite=true, or output"
                ]
            )
        kept[_key(draw)] = record
    return kept


def _enter(folder: Path, settings: Mapping[str, object], overwrite: bool) -> None:
    """Prepares the folder. Raises ConfigError where it was begun with other settings and is not to be overwritten."""
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
            [f"{folder} was begun with another {', '.join(changed)}; set overwrite=true, or another exp_name"]
        )


def _check_positions(model: Any, sampling: Sampling) -> None:
    from rankpo.models.engine.positions import usable_positions

    limit = usable_positions(model.base, model.position_offset)
    longest = model.settings.max_prompt_length + (model.inputs.control is not None)
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise ConfigError(
            [
                f"task.max_new_tokens={sampling.max_new_tokens} behind prompts of up to {longest} tokens are more than "
                f"the model's {limit} positions; lower it, or model.max_prompt_length"
            ]
        )


def _fingerprint_files(name: str, revision: str | None) -> str:
    """Of a folder's weights; a hub id is named by its revision."""
    if not Path(name).is_dir():
        return f"{name}@{revision}"
    return files.content_fingerprint(sorted(Path(name).glob("*.safetensors")))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
