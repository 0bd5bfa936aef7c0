"""llms.txt: what the documentation has, in the form that language models read (https://llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from pages import GROUPS


def listing(config: MkDocsConfig) -> str:
    """The text of llms.txt: every page of the navigation with its first sentence."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for entry in config.nav or []:
        lines += [*_section(entry, Path(config.docs_dir))]
    return "\n".join(lines) + "\n"


def _section(entry: dict[str, object] | str, docs: Path) -> Iterator[str]:
    title, below = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
    items = below if isinstance(below, list) else [{title: below} if title else below]
    if isinstance(below, list):
        yield from ["", f"## {title}", ""]
    for item in items:
        name, path = next(iter(item.items())) if isinstance(item, dict) else (None, item)
        words = description(docs, str(path))
        address = re.sub(r"(^|/)index$", r"\1", str(path).removesuffix(".md"))
        yield f"- [{name or words[0]}]({address or '.'}): {words[1]}"


def description(docs: Path, path: str) -> tuple[str, str]:
    """The title of a page and its first sentence; of a generated page the words of its group."""
    if path.startswith("reference/") and Path(path).stem in GROUPS:
        return GROUPS[Path(path).stem]
    file = docs / path
    if not file.exists():
        if path.startswith("notebooks/"):
            return Path(path).stem, "A notebook."
        return "Overview", "Every group and every key of a run, generated from the code."
    text = re.sub(r"^---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if re.match(r"[A-Za-z`*\[]", part.strip())]
    words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    return (title[1] if title else Path(path).stem), re.split(r"(?<=[.]) (?=[A-Z`])", words)[0]
