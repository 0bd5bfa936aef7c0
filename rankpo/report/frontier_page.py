"""HTML page of task=frontier: the chart of alignment against retention and the Pareto-optimal candidates."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rankpo.evaluation.frontier import Candidate
from rankpo.report.frontier import Point, chart
from rankpo.report.page import render_shell


def frontier_page(
    candidates: Sequence[Candidate], best: Sequence[Candidate], chosen: Candidate | None, kept: str, agreement: str
) -> str:
    """Returns HTML. candidates: all, the start model first. best: the Pareto-optimal ones. kept, agreement: metrics."""
    ends = [one for one in candidates if set(one.alphas) == {1.0} and not one.prior_weight]
    shown = list({id(one): one for one in (candidates[0], *ends, *best)}.values())
    points = [
        Point(
            name=f"{one.label}{' (FINAL)' if one is chosen else ''}",
            key=str(number),
            number=number,
            x=one.kept,
            y=one.agreement,
            role="baseline" if number == 0 else "",
        )
        for number, one in enumerate(shown)
    ]
    drawn = chart(points, f"share of the start model's {kept}", agreement)
    main = (
        f"<section><h2>Alignment against retention</h2><p>{len(candidates)} models between the start model and the trained "
        f"ones. The line joins those that no other beats in both.</p>{drawn}</section>"
        f"<section><h2>Models that no other beats</h2>{_table(best, chosen)}</section>"
    )
    return render_shell("Frontier of alignment and retention", main)


def _table(best: Sequence[Candidate], chosen: Candidate | None) -> str:
    names = list(best[0].metrics) if best else []
    head = "".join(f"<th>{escape(name)}</th>" for name in ("model", "kept", "agreement", *names))
    rows = []
    for one in best:
        label = f"<strong>{escape(one.label)} → FINAL</strong>" if one is chosen else escape(one.label)
        cells = [
            label,
            f"{100 * one.kept:.1f} %",
            f"{one.agreement:.4f}",
            *(f"{one.metrics[name]:.4f}" for name in names),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
