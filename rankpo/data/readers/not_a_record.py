"""NotARecord: what a reader of files gives in the place of something that is no record."""

from __future__ import annotations


class NotARecord(ValueError):
    """A line that is not a JSON object, or a row that does not fit its header."""
