"""Converts the Cranfield 1400 collection into a BEIR folder, to train and evaluate on grades that people gave.

    python -m benchmarks.cranfield SOURCE TARGET

SOURCE holds cran.all.1400, cran.qry and cranqrel, as many courses on retrieval distribute them. Cleverdon's code 1 is a
complete answer and 4 of minimum interest, so that the grade is 5 - code, from 4 down to 1. The code -1, which one document of
each question has in the file of the TREC format, is read as 1: these documents answer their question. The questions are
split by their place: of five, three are in train.tsv, one in dev.tsv and one in test.tsv.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SPLITS = ("train", "train", "train", "dev", "test")


def records(text: str) -> Iterator[dict[str, str]]:
    """Yields the records of a file in SMART's format, as {field: text} with the id in the field I."""
    for record in re.split(r"^\.I ", text, flags=re.MULTILINE)[1:]:
        number, _, rest = record.partition("\n")
        fields = re.split(r"^\.([A-Z])\s*$", rest, flags=re.MULTILINE)[1:]
        found = {name: " ".join(value.split()) for name, value in zip(fields[::2], fields[1::2], strict=True)}
        yield {**found, "I": number.strip()}  # Some copies end with an empty field I.


def grade_of(code: int) -> int:
    if code == 5 or not (code == -1 or 1 <= code <= 5):
        raise ValueError(f"a judgement has the code {code}; codes of relevant documents are 1 to 4, and -1")
    return 5 - abs(code)


def convert(source: Path, target: Path) -> None:
    """Writes corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    with (target / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for record in records((source / "cran.all.1400").read_text(encoding="latin-1")):
            title, text = record.get("T", ""), record.get("W", "")
            body = text.removeprefix(title).strip()  # The abstract begins with the title again.
            file.write(json.dumps({"_id": record["I"], "title": title, "text": body}) + "\n")
    with (target / "queries.jsonl").open("w", encoding="utf-8") as file:
        # The judgements name a question by its place in the file, and not by its id.
        for place, record in enumerate(records((source / "cran.qry").read_text(encoding="latin-1")), 1):
            file.write(json.dumps({"_id": str(place), "text": record["W"]}) + "\n")
    lines: dict[str, list[str]] = {split: ["query-id\tcorpus-id\tscore"] for split in SPLITS}
    for line in (source / "cranqrel").read_text().splitlines():
        if fields := line.split():
            question, document, code = fields[0], fields[-2], fields[-1]
            lines[SPLITS[int(question) % len(SPLITS)]].append(f"{question}\t{document}\t{grade_of(int(code))}")
    for split, rows in lines.items():
        (target / "qrels" / f"{split}.tsv").write_text("\n".join(rows) + "\n")


def main(arguments: Sequence[str]) -> None:
    source, target = map(Path, arguments)
    convert(source, target)


if __name__ == "__main__":
    main(sys.argv[1:])
