"""NotARecord: the value that a reader of files yields for an invalid record."""

from __future__ import annotations


class NotARecord(ValueError):
    """A line that is not a JSON object, or a row whose length differs from the header."""
