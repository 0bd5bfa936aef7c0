"""Records of a listwise reranker's windows for each list, as files beside the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.text.permutations import tally
from rankpo.storage.atomic import replace_text

if TYPE_CHECKING:
    from rankpo.data.readers.requests import Request
    from rankpo.models.listwise.ranked import RankedList, WindowRecord
    from rankpo.runs.logger import MetricsLogger


class FailedWindowsError(RuntimeError):
    """Raised if more windows than allowed kept their order because their answers were unreadable."""


def report_windows(
    folder: Path,
    requests: Sequence[Request],
    ranked: Sequence[RankedList],
    settings: Mapping[str, object],
    logger: MetricsLogger,
    max_failed: float,
) -> None:
    """Writes rerank.jsonl (a line per query) and rerank.json (settings and counts) on the main process.

    Raises FailedWindowsError on every rank where more than max_failed of all windows failed.
    """

    counts = tally([record.permutation for each in ranked for record in each.windows])
    logger.say("windows: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if logger.main:
        with (folder / "rerank.jsonl").open("w", encoding="utf-8") as file:
            for request, each in zip(requests, ranked, strict=True):
                file.write(json.dumps(_line(request, each), ensure_ascii=False) + "\n")
        decode = ranked[0].decode if ranked else None
        summary = {"queries": len(ranked), "windows": counts, "decode": decode, "settings": dict(settings)}
        replace_text(folder / "rerank.json", json.dumps(summary, indent=1))
    total = sum(counts.values())
    if counts["failed"] > max_failed * total:
        raise FailedWindowsError(
            f"{counts['failed']} of {total} windows failed, more than task.max_failed_windows={max_failed:g}; "
            f"{folder}/rerank.jsonl shows the answers"
        )


def _line(request: Request, ranked: RankedList) -> dict[str, object]:
    ranking = [
        {
            "docid": request.document_ids[item],
            "rank": rank,
            "score": score,
            "logit": ranked.logits[item],
            "window": ranked.held[item],
            "first_rank": item + 1,
            "first_score": request.scores[item],
        }
        for rank, (item, score) in enumerate(zip(ranked.order, ranked.scores, strict=True), 1)
    ]
    windows = [_window(record) for record in ranked.windows]
    return {"qid": request.id, "query": request.query, "ranking": ranking, "windows": windows}


def _window(record: WindowRecord) -> dict[str, object]:
    found = record.permutation
    line: dict[str, object] = {
        "start": record.start,
        "end": record.end,
        "pass": record.number,
        "status": found.status,
        "repairs": dict(found.repairs),
    }
    if found.reason:
        line["reason"] = found.reason
    if record.response is not None:
        line["response"] = record.response
    return line
