"""The hidden judge of the job-talent world: what a recruiter would weigh that field and place rules do not see."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rankpo.data.generated.jobs_texts import LEVELS

if TYPE_CHECKING:
    from rankpo.data.generated.jobs_people import Post, Profile

# weights of the utility, in logits: seniority fit, recency, depth, and a smaller share for the rules' grade
FIT, RECENCY, DEPTH, RULES = 1.0, 2.0, 3.0, 1.5


def utility(post: Post, profile: Profile) -> float:
    """How well a profile suits a post, in logits; every part lies in [0, 1] before it is weighed."""
    low, high, _ = LEVELS[post.level]
    distance = max(low - profile.years, profile.years - high, 0)
    fit = max(0.0, 1 - distance / 8)
    recency = max(0.0, 1 - (2026 - profile.last_year) / 10)
    same_field, same_region = post.field == profile.field, post.region == profile.region
    rules = (1.0 if same_region else 0.5) if same_field else 0.0
    return FIT * fit + RECENCY * recency + DEPTH * profile.depth / 3 + RULES * rules


def judge(post: Post, first: Profile, second: Profile) -> tuple[str, float]:
    """("A" or "B", confidence in [.5, 1]): the profile of larger utility; equal ones go to the smaller id at .5."""
    gap = utility(post, first) - utility(post, second)
    if gap == 0:
        return ("A" if first.id < second.id else "B"), 0.5
    return ("A" if gap > 0 else "B"), 1 / (1 + math.exp(-2 * abs(gap)))
