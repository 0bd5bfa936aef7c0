"""Printable text: conversion of untrusted names and messages for a terminal or a README.

Control characters in a JSON key or a file name could clear the screen, change the title of the window or forge a line. A
Markdown page interprets HTML and links. All text that is printed or written to a model card passes this module.
"""

from __future__ import annotations

import re

from rankpo.storage.secrets import redact

# Control characters except tab and line feed, directional overrides, line separators, surrogates, invisible tags and
# non-characters.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
MARKUP = re.compile(r"[<`|]|(?<=\])[\[(:]")  # Markup of HTML, code, tables and links.


def printable(text: str) -> str:
    r"""The text with each unsafe character escaped, such as `\x1b`; tabs and line feeds are kept."""
    return UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Like `printable`, with escaped line feeds and tabs too, so that a name or a cell cannot start a new line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(text: str) -> str:
    """The text for the console: `printable`, without the secrets of the environment."""
    return printable(redact(text))


def markdown(text: str) -> str:
    """`one_line` for a Markdown page, with escaped HTML, code, table cells and links."""
    return MARKUP.sub(lambda match: f"&#{ord(match.group())};", one_line(redact(text)))
