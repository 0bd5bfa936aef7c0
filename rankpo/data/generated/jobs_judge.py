"""Hidden judge of the job-talent world, which weighs criteria of recruiters that the rules do not use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rankpo.data.generated.jobs_texts import LEVELS

if TYPE_CHECKING:
    from rankpo.data.generated.jobs_people import Post, Profile

# weights of the utility, in logits: seniority fit, recency, depth, and a smaller share for the rules' grade
FIT, RECENCY, DEPTH, RULES = 1.0, 2.0, 3.0, 1.5


def utility(post: Post, profile: Profile) -> float:
    """The utility of a profile for a post, in logits. Every term is in [0, 1] before its weight is applied."""
    low, high, _ = LEVELS[post.level]
    distance = max(low - profile.years, profile.years - high, 0)
    fit = max(0.0, 1 - distance / 8)
    recency = max(0.0, 1 - (2026 - profile.last_year) / 10)
    same_field, same_region = post.field == profile.field, post.region == profile.region
    rules = (1.0 if same_region else 0.5) if same_field else 0.0
    return FIT * fit + RECENCY * recency + DEPTH * profile.depth / 3 + RULES * rules


def judge(post: Post, first: Profile, second: Profile) -> tuple[str, float]:
    """Returns "A" or "B", the profile of larger utility, and the confidence in [0.5, 1].

    For equal utilities, the smaller id wins with confidence 0.5.
    """
    gap = utility(post, first) - utility(post, second)
    if gap == 0:
        return ("A" if first.id < second.id else "B"), 0.5
    return ("A" if gap > 0 else "B"), 1 / (1 + math.exp(-2 * abs(gap)))
