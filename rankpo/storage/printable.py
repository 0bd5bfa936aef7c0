"""Printable text: names and messages of foreign origin, safe to show on a terminal and to write into a README.

A terminal obeys control characters: a JSON key or a file name could clear the screen, retitle the window or forge a
line. A Markdown page obeys HTML and links. Everything that is printed or put into a card passes through this module.
"""

from __future__ import annotations

import re

from rankpo.storage.secrets import redact

# controls but tab and line feed, directional overrides, line separators, surrogates, invisible tags and non-characters
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
MARKUP = re.compile(r"[<`|]|(?<=\])[\[(:]")  # of HTML, code, tables and links


def printable(text: str) -> str:
    r"""The text with each unsafe character written out, such as `\x1b`; tabs and line feeds stay."""
    return UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""`printable`, with line feeds and tabs written out too: a name or a cell that cannot begin a line of its own."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(text: str) -> str:
    """Makes text safe for the console: `printable`, without the secrets of the environment."""
    return printable(redact(text))


def markdown(text: str) -> str:
    """`one_line` as plain words of a Markdown page: no HTML, code, table cell or link begins or ends in it."""
    return MARKUP.sub(lambda match: f"&#{ord(match.group())};", one_line(redact(text)))
