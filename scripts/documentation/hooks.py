"""Hooks of MkDocs (mkdocs.yml): pages that are generated when the documentation is built.

The reference comes from the yamls of `config/`, pages of notebooks from docs/notebooks, llms.txt from all pages. A guide in
docs/guides that mkdocs.yml does not list is put behind the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import benchmarks
from llms import listing
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebooks import as_pages
from pages import GROUPS, reference

GUIDES = "Guides"
REFERENCE = "Reference"
Entry = dict[str, Any]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation: guides that are not listed, and the pages of the reference."""
    docs = Path(config.docs_dir)
    nav: list[Entry] = config.nav or []
    for entry in nav:
        if GUIDES in entry:
            entry[GUIDES] += unlisted(docs, entry[GUIDES])
        if REFERENCE in entry:
            pages = [{title: f"reference/{name}.md"} for name, (title, _) in GROUPS.items()]
            entry[REFERENCE] = ["reference/index.md", *pages]
    return config


def unlisted(docs: Path, listed: Sequence[Entry | str]) -> list[str]:
    """Guides that the navigation does not list, by name."""
    named = {path for item in listed for path in (item.values() if isinstance(item, dict) else [item])}
    found = [path.relative_to(docs).as_posix() for path in sorted((docs / "guides").glob("*.md"))]
    return [path for path in found if path not in named]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    docs = Path(config.docs_dir)
    made = {**reference(), **as_pages(docs / "notebooks"), "benchmarks.md": benchmarks()}
    for path, text in {**made, "llms.txt": listing(config)}.items():
        files.append(File.generated(config, path, content=text))
    return files
