"""Samples of task=sample, and their feedback in HALOs' format for datasets=[chat]."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankpo.data.readers import files
from rankpo.data.readers.chat_turns import needed, turns
from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import prompt_record
from rankpo.judges.forms import Annotation, Scored
from rankpo.judges.records import Records, digest
from rankpo.judges.scores import ScoresJudge
from rankpo.storage.atomic import replace_text
from rankpo.types import Prompt


@dataclass
class Samples:
    """prompts: by prompt id. completions: text by the completion's id. of: ids of each prompt's completions, in the
    order of the files. empty: the number of omitted completions of only white space. cut: prompt id and text of
    truncated completions, which have no end token.
    """

    prompts: dict[str, Prompt] = field(default_factory=dict)
    completions: dict[str, str] = field(default_factory=dict)
    of: dict[str, list[str]] = field(default_factory=dict)
    empty: int = 0
    cut: set[tuple[str, str]] = field(default_factory=set)

    def add(self, record: object) -> None:
        """Adds a sample. Raises BadRecord for other records, and for an id with two prompts."""
        if not isinstance(record, Mapping):
            raise BadRecord(str(record))
        if record.get("type") != "sample":
            raise BadRecord(f"type is {record.get('type')!r}; task=sample writes records of type 'sample'")
        name, given, output = str(needed(record, "prompt_id")), needed(record, "prompt"), needed(record, "output")
        prompt: Prompt = given if isinstance(given, str) else turns(given, "prompt")
        if self.prompts.setdefault(name, prompt) != prompt:
            raise BadRecord(f"prompt_id {name!r} has another prompt than before; use different ids in this file")
        if not isinstance(output, str):
            raise BadRecord(f"output must be a text, got {type(output).__name__}")
        if not output.strip():
            self.empty += 1
            return
        several = self.of.setdefault(name, [])
        several.append(f"{name}#{len(several)}")
        self.completions[several[-1]] = output
        if record.get("finished") is False:
            self.cut.add((name, output))

    def rankings(self, top_k: int) -> dict[str, tuple[list[str], list[float]]]:
        """Returns completions in the order of the files with scores of 0, since they are not ranked yet."""
        return {name: (ids[:top_k], [0.0] * len(ids[:top_k])) for name, ids in self.of.items()}

    def feedback(self, kind: str, prompt_id: str, values: Mapping[str, object]) -> str:
        """A record of HALOs' JSON."""
        head = {"type": f"{kind}_feedback", "prompt_id": prompt_id, "prompt": prompt_record(self.prompts[prompt_id])}
        return json.dumps({**head, **values}) + "\n"

    def pairwise(self, record: Annotation) -> str:
        """Returns a judged pair in HALOs' format, with the keys p and confidence."""
        values: dict[str, object] = {
            "output_A": _turn(record["passage1"]),
            "output_B": _turn(record["passage2"]),
            "label": int(record["preferred"] == "A"),
            "p": record["p"],
            "confidence_score": record["confidence_score"],
            **({"suspicious": record["suspicious"]} if "suspicious" in record else {}),
        }
        name = record["query_id"]
        for letter, text in (("A", record["passage1"]), ("B", record["passage2"])):
            values |= self.ending(name, text, f"finished_{letter}")
        return self.feedback("pairwise", name, values)

    def ending(self, prompt_id: str, text: str, key: str) -> dict[str, bool]:
        """Returns {key: False} for a truncated completion, which must be trained without an end token."""
        return {key: False} if (prompt_id, text) in self.cut else {}


def read_samples(path: str) -> Samples:
    """Returns the samples of a file, folder or glob; samples of several models are combined by prompt id.

    Raises ValueError with the line of a record that is not a sample.
    """
    samples = Samples()
    for file in files.find(path, "samples"):
        for place, record in files.records(file):
            try:
                samples.add(record)
            except BadRecord as error:
                raise ValueError(f"task.samples: {place}: {error}") from error
    return samples


def reward(
    judge: ScoresJudge, samples: Samples, folder: Path, limit: int | None, say: Callable[[str], None]
) -> dict[str, object]:
    """Writes `folder`/feedback.jsonl: scalar_feedback, each completion with the judge's score. limit: prompts.

    The scores of each prompt are on disk before the next prompt, so that a restart continues where it stopped.
    """
    records: Records[Scored] = Records(folder / "scores.jsonl", "key")
    lines: list[str] = []
    chosen = list(samples.of.items())[:limit]
    try:
        for name, ids in chosen:
            texts = [samples.completions[identity] for identity in ids]
            key = digest({"judge": judge.name, "prompt": samples.prompts[name], "completions": texts})
            record = records.get(key)
            if record is None:
                record = {"key": key, "prompt_id": name, "scores": judge.score(samples.prompts[name], texts)}
                records.add(record)
            pairs = zip(texts, record["scores"], strict=True)
            for text, score in pairs:
                values = {"output": _turn(text), "reward": score, **samples.ending(name, text, "finished")}
                lines.append(samples.feedback("scalar", name, values))
    finally:
        records.close()
    write_feedback(folder, lines)
    say(f"{folder / 'feedback.jsonl'}: {len(lines)} completions of {len(chosen)} prompts scored by {judge.name}")
    return {"prompts": len(chosen), "completions": len(lines)}


def write_feedback(folder: Path, lines: Sequence[str]) -> None:
    """Writes feedback.jsonl atomically."""
    replace_text(folder / "feedback.jsonl", "".join(lines))


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
