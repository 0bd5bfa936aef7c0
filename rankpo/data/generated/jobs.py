"""Generated job-talent world: posts, profiles, rules that label them, and a judge with other criteria.

As in RankPO's paper, stage one learns from rules (field and place). The judge of `jobs_judge.py` also weighs seniority,
recency and depth. The seed determines all data, without a download or global random state.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from rankpo.data.generated.jobs_judge import judge, utility
from rankpo.data.generated.jobs_people import Post as Post
from rankpo.data.generated.jobs_people import Profile as Profile
from rankpo.data.generated.jobs_texts import (
    DEPTH,
    DUTIES,
    FIELDS,
    FILLERS,
    LEVELS,
    NO_YEARS,
    RECENT,
    REGIONS,
    STALE,
    YEARS,
)
from rankpo.data.readers.beir import write_beir
from rankpo.data.shape import Declares
from rankpo.types import Example

WORLDS = ("train", "dev", "test")
SIZE_KEPT_APART = 2000  # of an earlier world, or as many as are drawn if that is more
LETTERS = {"profiles": "p", "posts": "j"}
PARTS = ("contrastive", "preferences", "graded", "dev", "test", "preferences_dev", "preferences_test")
NOW = 2026
VERSION = 4  # Raise this number with every change of the generated data.


T = TypeVar("T", Post, Profile)


def relevance(post: Post, profile: Profile) -> int:
    """The grade by the rules: 2 for the same field and region, 1 for the same field in another region, else 0."""
    if post.field != profile.field:
        return 0
    return 2 if post.region == profile.region else 1


@dataclass(kw_only=True)
class Jobs(Declares):
    """One part of the world.

    part: `contrastive`, `preferences` and `graded` to train on; `dev` and `test`, corpora with graded judgements;
    `preferences_dev`, `preferences_test`, pairs for their posts. num_profiles: of each of the three worlds (train,
    dev, test), which share no text of a post or profile. num_pairs: per post, all among `shortlist` profiles drawn for it:
    a judge who compares within a short list makes texts that updates share. num_negatives: per post; of `graded`,
    candidates of each grade. max_label: of `graded`, the relevance of the best grade.
    """

    name: str
    part: str = "contrastive"
    seed: int = 7
    num_profiles: int = 2000
    num_posts: int = 300
    num_negatives: int = 10
    num_pairs: int = 8
    shortlist: int = 6
    max_label: float = 1.0
    weight: float = 1.0
    ignore_identical_ids: bool = False
    relevant_from: int = 1
    gain: str = "exp"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {self.part!r}")
        if self.shortlist < 2:
            raise ValueError(f"shortlist must be >= 2, got {self.shortlist}")
        for name in ("num_profiles", "num_posts", "num_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    @property
    def world(self) -> str:
        """train, dev or test."""
        of_train = ("contrastive", "preferences", "graded")
        return "train" if self.part in of_train else self.part.removeprefix("preferences_")

    @property
    def judgements(self) -> Jobs | None:
        """The corpus of profiles; preference pairs are judged by themselves."""
        return None if self.part.startswith("preferences") else self

    def fingerprint(self) -> str:
        settings = {item.name: getattr(self, item.name) for item in fields(self)}  # not the cached posts and profiles
        return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, {**settings, "name": ""}]).encode())

    @cached_property
    def profiles(self) -> Sequence[Profile]:
        return _draw(make_profile, "profiles", self.seed, self.world, self.num_profiles)

    @cached_property
    def posts(self) -> Sequence[Post]:
        return _draw(make_post, "posts", self.seed, self.world, self.num_posts)

    def corpus(self) -> Iterator[tuple[str, str]]:
        for profile in self.profiles:
            yield profile.id, profile.text

    def queries(self) -> Iterator[tuple[str, str]]:
        for post in self.posts:
            yield post.id, post.text

    def qrels(self) -> dict[str, dict[str, int]]:
        graded = {
            post.id: {profile.id: relevance(post, profile) for profile in self.profiles if relevance(post, profile)}
            for post in self.posts
        }
        return {post: judged for post, judged in graded.items() if judged}

    def examples(self) -> Iterator[Example]:
        if self.part.startswith("preferences"):
            yield from self._preferences()
        elif self.part == "graded":
            yield from self._graded()
        else:
            yield from self._contrastive()

    def _contrastive(self) -> Iterator[Example]:
        """Positives: grade 2. Negatives: near misses (right field elsewhere, neighbouring field here) and others."""
        rng = random.Random(f"{self.seed}/{self.world}/negatives")
        for post in self.posts:
            positives = [profile for profile in self.profiles if relevance(post, profile) == 2]
            if not positives:
                continue
            near = [profile for profile in self.profiles if _near_miss(post, profile)]
            far = [p for p in self.profiles if relevance(post, p) == 0 and not _near_miss(post, p)]
            half = min(len(near), self.num_negatives // 2)
            negatives = rng.sample(near, half) + rng.sample(far, min(len(far), self.num_negatives - half))
            texts = [profile.text for profile in (*positives, *negatives)]
            values = [1.0] * len(positives) + [0.0] * len(negatives)
            unique = dict(zip(reversed(texts), reversed(values), strict=True))  # of equal texts the positive stays
            yield Example(post.text, tuple(reversed(unique)), tuple(reversed(unique.values())), post.id)

    def _graded(self) -> Iterator[Example]:
        """Candidates of every grade, 2 to 0 scaled to max_label; the teacher is the judge's utility, in logits."""
        rng = random.Random(f"{self.seed}/{self.world}/graded")
        for post in self.posts:
            chosen: dict[str, Profile] = {}
            for grade in (2, 1, 0):
                pool = [profile for profile in self.profiles if relevance(post, profile) == grade]
                for profile in rng.sample(pool, min(len(pool), self.num_negatives)):
                    chosen.setdefault(profile.text, profile)
            grades = tuple(relevance(post, profile) / 2 * self.max_label for profile in chosen.values())
            relevant = tuple(relevance(post, profile) >= self.relevant_from for profile in chosen.values())
            teacher = tuple(utility(post, profile) for profile in chosen.values())
            if len(set(grades)) > 1:
                yield Example(post.text, tuple(chosen), grades, post.id, teacher=teacher, relevant=relevant)

    def _preferences(self) -> Iterator[Example]:
        """Pairs of plausible profiles, most of them right by the rules, chosen and rejected by the judge."""
        rng = random.Random(f"{self.seed}/{self.world}/pairs")
        for post in self.posts:
            right = [profile for profile in self.profiles if relevance(post, profile)]
            near = [profile for profile in self.profiles if _near_miss(post, profile) and not relevance(post, profile)]
            pool = right + rng.sample(near, min(len(near), max(2, len(right) // 2)))
            chosen_few = rng.sample(pool, min(len(pool), self.shortlist))
            pairs = list(combinations(chosen_few, 2))
            for number, (first, second) in enumerate(rng.sample(pairs, min(len(pairs), self.num_pairs))):
                if first.text == second.text:
                    continue
                preferred, confidence = judge(post, first, second)
                chosen, rejected = (first, second) if preferred == "A" else (second, first)
                yield Example(
                    post.text, (chosen.text, rejected.text), (1.0, 0.0), f"{post.id}/{number}", confidence=confidence
                )


def _near_miss(post: Post, profile: Profile) -> bool:
    elsewhere = post.field == profile.field and post.region != profile.region
    neighbour = FIELDS[post.field][2] == profile.field and post.region == profile.region
    return elsewhere or neighbour


def make_post(rng: random.Random, identity: str) -> Post:
    """A post of one to about ten sentences."""
    field, region, level = rng.choice(list(FIELDS)), rng.choice(list(REGIONS)), rng.choice(list(LEVELS))
    subject, city = rng.choice(FIELDS[field][0]), rng.choice(REGIONS[region])
    title = rng.choice(("Specialist in {s}, {c}.", "{s}: position in {c}.", "Wanted in {c}: {s}.")).format(
        s=subject, c=city
    )
    sentences = [title, rng.choice(LEVELS[level][2])]
    if rng.random() < 0.6:
        extra = rng.choice(FIELDS[field][0])
        sentences += [f"The work is in {extra}.", *rng.sample(DUTIES, rng.randint(1, len(DUTIES)))]
    return Post(identity, " ".join(sentences), field, region, level)


def make_profile(rng: random.Random, identity: str) -> Profile:
    """A profile with one line to several paragraphs (about 5 to 300 tokens)."""
    field, region = rng.choice(list(FIELDS)), rng.choice(list(REGIONS))
    years = rng.choice((0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 13, 15, 17, 20, 23))
    last_year = NOW if rng.random() < 0.5 else rng.randint(NOW - 14, NOW - 1)
    depth = rng.randint(0, 3)
    words, city = rng.sample(FIELDS[field][1], 3), rng.choice(REGIONS[region])
    experience = rng.choice(NO_YEARS) if years == 0 else rng.choice(YEARS).format(years=years)
    recency = rng.choice(RECENT if last_year >= NOW - 2 else STALE).format(year=last_year)
    core = f"{words[0].capitalize()}, {city}. {experience.capitalize()}, {recency}; {rng.choice(DEPTH[depth])}."
    size = rng.random()
    if size < 0.45:
        text = core
    elif size < 0.9:
        text = f"{core} Also {words[1]} and {words[2]}. {' '.join(rng.sample(FILLERS, rng.randint(1, 4)))}"
    else:
        text = _long_profile(rng, core, field, words)
    return Profile(identity, text, field, region, years, last_year, depth)


def _long_profile(rng: random.Random, core: str, field: str, words: list[str]) -> str:
    """Publications and side interests: other fields are mentioned, as in real profiles."""
    other = rng.choice([name for name in FIELDS if name != field])
    works = [f"Report {rng.randint(1, 99)}: {rng.choice(words)} in practice." for _ in range(rng.randint(3, 10))]
    aside = f"As a student, touched on {rng.choice(FIELDS[other][1])}."
    middle = rng.sample(FILLERS, rng.randint(3, len(FILLERS)))
    rng.shuffle(works)
    return " ".join([rng.choice(middle), core, *works, aside, *middle])


@lru_cache(maxsize=16)
def _draw(make: Callable[[random.Random, str], T], what: str, seed: int, world: str, count: int) -> tuple[T, ...]:
    """Draws `count` posts or profiles of a world. A text of an earlier world is drawn again from separate random numbers.

    Therefore evaluated texts were never trained on, and other draws do not change.
    """
    rng = random.Random(f"{seed}/{world}/{what}")
    drawn = [make(rng, f"{world}-{LETTERS[what]}{number}") for number in range(count)]
    earlier = WORLDS[: WORLDS.index(world)]
    taken = {item.text for other in earlier for item in _draw(make, what, seed, other, max(count, SIZE_KEPT_APART))}
    for number, item in enumerate(drawn):
        attempt = 0
        while item.text in taken:
            item = make(random.Random(f"{seed}/{world}/{what}/{number}/{attempt}"), item.id)
            attempt += 1
        drawn[number] = item
    return tuple(drawn)


def write_jobs(path: str | Path, **settings: Any) -> None:
    """Writes the world as files: RankPO's contrastive.jsonl and preferences*.jsonl, and BEIR folders dev/ and test/."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "contrastive.jsonl").open("w", encoding="utf-8") as file:
        for example in Jobs(name="jobs", part="contrastive", **settings).examples():
            by_label = {
                label: [t for t, r in zip(example.candidates, example.relevance, strict=True) if r == label]
                for label in (1.0, 0.0)
            }
            file.write(
                json.dumps({"query": example.query, "positives": by_label[1.0], "negatives": by_label[0.0]}) + "\n"
            )
    for part in ("preferences", "preferences_dev", "preferences_test"):
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for example in Jobs(name="jobs", part=part, **settings).examples():
                record = {"query": example.query, "passage1": example.candidates[0], "passage2": example.candidates[1]}
                score = round(100 * (example.confidence or 1))
                file.write(json.dumps({**record, "preferred": "A", "confidence_score": score}) + "\n")
    for part in ("dev", "test"):
        world = Jobs(name="jobs", part=part, **settings)
        write_beir(folder / part, world.corpus(), world.queries(), world.qrels(), split="test")
