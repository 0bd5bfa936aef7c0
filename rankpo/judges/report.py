"""Report on annotations: position bias, agreement, confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import binomtest

from rankpo.judges.forms import Agreement, Annotation, Share
from rankpo.judges.verdicts import Unparsable
from rankpo.storage.secrets import redact

REMEDIES = {
    "no answer": "had no answer, and the same command asks again",
    "unparsable": "had answers without a verdict: a larger task.max_reasks asks once more, other words of "
    "judge.template or keys of judge ask anew",
}
GAPS = ((1, 5), (6, 15), (16, 30), (31, 10**9))


def wilson(successes: int, total: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927), [0, 1] without observations."""
    if total == 0:
        return [0.0, 1.0]
    interval = binomtest(successes, total).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def share(flags: Sequence[bool]) -> Share:
    """Returns the count and total, with the share and its 95 % interval."""
    count = sum(flags)
    return {
        "count": count,
        "of": len(flags),
        "share": count / len(flags) if flags else None,
        "interval": wilson(count, len(flags)),
    }


def report(records: Sequence[Annotation]) -> Agreement:
    """first_shown: calls that preferred the passage shown first, with the p-value of an unbiased judge."""
    calls = [call["preferred"] == "A" for record in records for call in record["calls"]]
    stage_one = [
        (record["preferred"] == "A") == (record["passage_rank1"] < record["passage_rank2"]) for record in records
    ]
    gaps = [abs(record["passage_rank1"] - record["passage_rank2"]) for record in records]
    passages = [(record["passage1"], record["passage2"], record["preferred"] == "A") for record in records]
    longer = [(len(one) > len(two)) if first else (len(two) > len(one)) for one, two, first in passages]
    confidences = [record["confidence_score"] for record in records if record["confidence_score"] is not None]
    first = share(calls)
    first["p_value"] = float(binomtest(first["count"], first["of"]).pvalue) if calls else None
    return {
        "pairs": len(records),
        "first_shown_preferred": first,
        "orders_agree": share([record["agree"] for record in records if record["order"] == "both"]),
        "agrees_with_ranking": share(stage_one),
        "agrees_with_ranking_by_gap": {
            f"{low}-{high}" if high < 10**9 else f"{low}+": share(
                [agrees for agrees, gap in zip(stage_one, gaps, strict=True) if low <= gap <= high]
            )
            for low, high in GAPS
        },
        "longer_passage_preferred": share(longer),
        "confidence": {str(value): confidences.count(value) for value in sorted(set(confidences))},
        "confidence_missing": len(records) - len(confidences),
    }


def failure_lines(failures: Mapping[str, Exception]) -> tuple[list[dict[str, str]], str]:
    """Returns the lines of failed.jsonl, and a message about them, "" without failures.

    The next start repeats calls without an answer. Answers without a preference are cached, so that only a further
    attempt or another request can give different ones.
    """
    lines = [
        {
            "key": key,
            "kind": "unparsable" if isinstance(error, Unparsable) else "no answer",
            "error": redact(str(error)),
        }
        for key, error in failures.items()
    ]
    parts = []
    for kind, remedy in REMEDIES.items():
        errors = [line["error"] for line in lines if line["kind"] == kind]
        if errors:
            parts.append(f"{len(errors)} {remedy} (the first: {errors[0]})")
    return lines, "; ".join(parts)
