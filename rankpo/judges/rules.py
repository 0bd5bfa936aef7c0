"""Rule-based judge of the job-talent data, which identifies posts and profiles by their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankpo.data.generated.jobs import Jobs, Post, Profile
from rankpo.data.generated.jobs_judge import judge
from rankpo.judges.base import Judge, JudgeStopped, Reply, words
from rankpo.types import Prompt

WORLDS = {"train": "contrastive", "dev": "dev", "test": "test"}


@dataclass(kw_only=True)
class JobsRules(Judge):
    """seed, num_profiles, num_posts: of the judged `jobs` data, which determine its hidden attributes."""

    seed: int = 7
    num_profiles: int = 2000
    num_posts: int = 300
    price: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = "jobs rules"
        self._posts: dict[object, Post] = {}
        self._profiles: dict[object, Profile] = {}

    def _know(self) -> dict[object, Post]:
        if not self._posts:
            for part in WORLDS.values():
                world = Jobs(
                    name="judge", part=part, seed=self.seed, num_profiles=self.num_profiles, num_posts=self.num_posts
                )
                self._posts.update({post.text: post for post in world.posts})
                self._profiles.update({profile.text: profile for profile in world.profiles})
        return self._posts

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return {"judge": self.name, "query": query, "a": a, "b": b}

    def ask(self, request: Mapping[str, object]) -> Reply:
        posts = self._know()
        post, first, second = posts.get(request["query"]), *(self._profiles.get(request[side]) for side in "ab")
        if post is None or first is None or second is None:
            raise JudgeStopped(
                "the rules know the posts and profiles of datasets=[jobs] only; "
                "judge.seed, judge.num_profiles and judge.num_posts must be the data's"
            )
        preferred, confidence = judge(post, first, second)
        return Reply(words(preferred, confidence), self.name)
