"""Rule-based judge of the job-talent data, which identifies posts and profiles by their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from rankpo.data.generated.jobs import Jobs, Post, Profile
from rankpo.data.generated.jobs_judge import judge, utility
from rankpo.judges.base import Judge, JudgeStopped, Reply, words
from rankpo.judges.orders import order_words
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

    def request_list(self, query: Prompt, passages: Sequence[str]) -> dict[str, object]:
        return {"judge": self.name, "query": query, "passages": list(passages)}

    def ask(self, request: Mapping[str, object]) -> Reply:
        if "passages" in request:
            post, profiles = self._known(request["query"], cast("Sequence[object]", request["passages"]))
            places = sorted(range(len(profiles)), key=lambda place: profiles[place].id)
            places.sort(key=lambda place: utility(post, profiles[place]), reverse=True)
            return Reply(order_words(places), self.name)
        post, (first, second) = self._known(request["query"], [request["a"], request["b"]])
        preferred, confidence = judge(post, first, second)
        return Reply(words(preferred, confidence), self.name)

    def _known(self, query: object, texts: Sequence[object]) -> tuple[Post, list[Profile]]:
        """The post and the profiles of texts. Raises JudgeStopped for other texts than those of the world."""
        post, profiles = self._know().get(query), [self._profiles.get(text) for text in texts]
        known = [profile for profile in profiles if profile is not None]
        if post is None or len(known) < len(profiles):
            raise JudgeStopped(
                "the rules know the posts and profiles of datasets=[jobs] only; "
                "judge.seed, judge.num_profiles and judge.num_posts must be the data's"
            )
        return post, known
