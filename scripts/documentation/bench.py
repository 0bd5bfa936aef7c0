"""Page of the benchmarks: what each measures, and the ratios of the newest dated results."""

from __future__ import annotations

import re

from groups import ROOT

FOLDER = ROOT / "benchmarks"


def benchmarks() -> str:
    """Markdown: the text of benchmarks/README.md, and the comparisons of its newest results."""
    newest = sorted((FOLDER / "results").glob("*.md"))[-1]
    sections = re.split(r"^## ", newest.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    parts = [(FOLDER / "README.md").read_text(encoding="utf-8").rstrip(), f"## Results of {newest.stem}"]
    for section in sections:
        title, *lines = section.splitlines()
        found = [line for line in lines if line.startswith("- ")]
        about = next((line for line in lines if line and not line.startswith(("|", "-", "*"))), "")
        parts.append("\n".join([f"### {title}", "", about, "", *found]))
    return "\n\n".join(parts) + "\n"
