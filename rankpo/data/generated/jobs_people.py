"""Posts and profiles of the job-talent world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Post:
    """A job post; level is what the rules do not see."""

    id: str
    text: str
    field: str
    region: str
    level: str


@dataclass(frozen=True)
class Profile:
    """A candidate; years of experience, year of the last work on it, and depth (0 to 3) are what the rules do not see."""

    id: str
    text: str
    field: str
    region: str
    years: int
    last_year: int
    depth: int
