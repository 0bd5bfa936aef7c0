"""Pages of notebooks: their cells as Markdown, with a link to the notebook itself."""

from __future__ import annotations

import json
from pathlib import Path


def as_pages(folder: Path) -> dict[str, str]:
    """Markdown by path in docs/, one page for each notebook of the folder."""
    return {f"notebooks/{path.stem}.md": page(path) for path in sorted(folder.glob("*.ipynb"))}


def page(path: Path) -> str:
    """The cells of a notebook, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        if number == 0:
            parts.append(f"Download the notebook: [{path.name}]({path.name}).")
    return "\n\n".join(parts) + "\n"
