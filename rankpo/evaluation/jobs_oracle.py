"""Upper bound for the job-talent data: ranking by the judge's hidden utility plus a weighted grade of the rules."""

from __future__ import annotations

from collections.abc import Sequence

from rankpo.data.generated.jobs import Jobs, Post, Profile, relevance
from rankpo.data.generated.jobs_judge import utility
from rankpo.evaluation.rules import Rules

METRICS = ("ndcg@20", "recall@100")
TOP_K = 100


def oracle(parts: Sequence[object], weight: float) -> dict[str, float]:
    """Metrics by data set and name of the score utility + weight·grade, which the texts do not fully determine.

    parts: corpora and preferences of the data, with their names in evaluations. weight: in the judge's log-odds.
    """
    found: dict[str, float] = {}
    for part in parts:
        if not isinstance(part, Jobs):
            continue
        if part.judgements is None:
            found[f"{part.name}/accuracy"] = _agreement(part, weight)
        else:
            found.update({f"{part.name}/{name}": value for name, value in _retrieval(part, weight).items()})
    return found


def _score(post: Post, profile: Profile, weight: float) -> float:
    return utility(post, profile) + weight * relevance(post, profile)


def _retrieval(part: Jobs, weight: float) -> dict[str, float]:
    rules = Rules.of(part)
    run = {
        post.id: rules.hits(post.id, {one.id: _score(post, one, weight) for one in part.profiles}, TOP_K)
        for post in part.posts
    }
    return dict(rules.measure(run, part.qrels(), METRICS).metrics)


def _agreement(part: Jobs, weight: float) -> float:
    """Share of pairs whose preferred profile scores higher, ties counting half."""
    posts = {post.text: post for post in part.posts}
    profiles = {profile.text: profile for profile in part.profiles}
    values = []
    for example in part.examples():
        post = posts[str(example.query)]
        chosen, rejected = (_score(post, profiles[text], weight) for text in example.candidates)
        values.append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)
    return sum(values) / len(values)
