"""The job-talent world: the same in every process, split without overlap, and a judge who partly disagrees with rules."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rankpo.data.generated.jobs import PARTS, Jobs, Post, Profile, relevance, write_jobs
from rankpo.data.generated.jobs_judge import judge, utility
from rankpo.data.generated.jobs_texts import FIELDS, LEVELS, REGIONS
from rankpo.data.readers.beir import Beir
from rankpo.data.readers.records import Records

SMALL = {"num_profiles": 150, "num_posts": 20}


def world(part: str, **settings) -> Jobs:
    return Jobs(name="jobs", part=part, **settings)


def examples(part: str, **settings):
    return list(world(part, **{**SMALL, **settings}).examples())


PROGRAM = """
import sys, xxhash
from rankpo.data.generated.jobs import PARTS, Jobs
digest = xxhash.xxh3_128()
for part in PARTS:
    data = Jobs(name="jobs", part=part, num_profiles=150, num_posts=20)
    for item in (*data.examples(), *data.corpus(), *data.queries(), sorted(data.qrels().items())):
        digest.update(repr(item).encode())
sys.stdout.write(digest.hexdigest())
"""


def test_equal_in_every_process_whatever_its_hash_seed():
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=root, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "PYTHONHASHSEED": salt})
        for salt in ("0", "1")
    ]  # fmt: skip
    first, second = (process.communicate(timeout=600)[0] for process in running)
    assert first == second and len(first) == 32


def test_the_seed_and_only_the_seed_makes_another_world():
    assert examples("contrastive") == examples("contrastive")
    assert examples("contrastive", seed=8) != examples("contrastive")
    assert world("dev", seed=8).fingerprint() != world("dev").fingerprint()
    renamed, computed = Jobs(name="other", part="dev", **SMALL), world("dev", **SMALL)
    list(computed.corpus())
    assert renamed.fingerprint() == computed.fingerprint()


def test_asking_for_more_posts_leaves_the_first_ones_as_they_were():
    few, many = world("dev", num_posts=5), world("dev", num_posts=9)
    assert list(few.queries()) == list(many.queries())[:5]


@pytest.mark.parametrize("what", ["posts", "profiles"])
def test_the_three_worlds_share_no_text(what):
    """2,000 of each: drawn without looking, 21 posts of dev would be in train too."""
    sizes = {"num_profiles": 2000, "num_posts": 2000}
    train, dev, test = (
        {item.text for item in getattr(world(part, **sizes), what)} for part in ("graded", "dev", "test")
    )
    assert not train & dev and not train & test and not dev & test
    small = getattr(world("dev", num_profiles=80, num_posts=80), what)
    assert list(small) == list(getattr(world("dev", **sizes), what))[:80]


def test_parts_of_one_world_show_the_same_posts():
    assert world("contrastive").world == world("preferences").world == "train"
    assert world("dev").world == world("preferences_dev").world == "dev"
    posts = {example.query for example in examples("preferences_test")}
    assert posts <= {text for _, text in world("test", **SMALL).queries()}


def test_contrastive_positives_are_those_of_the_rules():
    data = world("contrastive", **SMALL)
    profiles = {profile.text: profile for profile in data.profiles}
    posts = {post.id: post for post in data.posts}
    found = list(data.examples())
    assert len(found) >= 10
    for example in found:
        post = posts[example.id]
        grades = [relevance(post, profiles[text]) for text in example.candidates]
        assert [float(grade == 2) for grade in grades] == list(example.relevance)
        assert len(set(example.candidates)) == len(example.candidates)
        negatives = [
            profiles[text] for text, value in zip(example.candidates, example.relevance, strict=True) if not value
        ]
        assert len(negatives) == 10
        near = [
            p
            for p in negatives
            if p.field == post.field or (p.region == post.region and p.field == FIELDS[post.field][2])
        ]
        assert near  # near misses are among them


def test_judgements_are_the_rules_grades_by_hand():
    data = world("dev", **SMALL)
    qrels = data.qrels()
    for post in data.posts:
        expected = {
            profile.id: 1 + (profile.region == post.region) for profile in data.profiles if profile.field == post.field
        }
        assert qrels.get(post.id, {}) == expected


def test_utility_by_hand():
    """fit + 2 · recency + 3 · depth/3 + 1.5 · rules. Senior wants 9 to 14 years; 5 years miss it by 4: fit 1/2.

    Last year 2021: recency 1/2. Depth 3. Right field elsewhere: 1/2. Sum 0.5 + 1 + 3 + 0.75 = 5.25. The other one: fit
    1, recency 1, depth 0, wrong field: 3.
    """
    post = Post("j", "", field="soil", region="Alps", level="senior")
    profile = Profile("p", "", field="soil", region="Iberia", years=5, last_year=2021, depth=3)
    assert utility(post, profile) == pytest.approx(5.25)
    weaker = Profile("o", "", field="tax", region="Alps", years=12, last_year=2026, depth=0)
    assert utility(post, weaker) == pytest.approx(3.0)
    assert judge(post, profile, weaker) == ("A", pytest.approx(1 / (1 + 2.718281828**-4.5)))
    assert judge(post, weaker, profile)[0] == "B"
    assert judge(post, profile, profile) == ("B", 0.5)
    assert judge(post, profile, Profile(**{**profile.__dict__, "id": "q"})) == ("A", 0.5)


@pytest.mark.parametrize("part", ["preferences", "preferences_dev"])
def test_the_judge_conflicts_with_the_rules_to_a_degree(part):
    """Where the rules prefer one of a pair, the judge mostly agrees, and disagrees often enough to be worth learning."""
    data = world(part, num_profiles=600, num_posts=80)
    posts = {post.id: post for post in data.posts}
    profiles = {profile.text: profile for profile in data.profiles}
    agree = differ = 0
    for example in data.examples():
        post = posts[example.id.rpartition("/")[0]]
        chosen, rejected = (profiles[text] for text in example.candidates)
        assert utility(post, chosen) >= utility(post, rejected)
        assert example.relevance == (1.0, 0.0) and 0.5 <= example.confidence <= 1
        by_rules = relevance(post, chosen) - relevance(post, rejected)
        agree += by_rules > 0
        differ += by_rules < 0
    assert agree + differ > 100
    assert 0.1 < differ / (agree + differ) < 0.45


def test_pairs_of_a_post_come_from_a_short_list():
    by_post: dict[str, list[tuple[str, ...]]] = {}
    for example in examples("preferences", num_pairs=8, shortlist=4):
        by_post.setdefault(example.query, []).append(example.candidates)
    for pairs in by_post.values():
        assert len(pairs) <= 6  # 4 · 3 / 2
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert len({text for pair in pairs for text in pair}) <= 4


def test_a_single_profile_makes_no_pair():
    assert examples("preferences", num_profiles=1) == []


def test_texts_vary_in_length_and_hide_what_the_judge_sees():
    data = world("dev", num_profiles=500, num_posts=100)
    lengths = sorted(len(profile.text.split()) for profile in data.profiles)
    assert lengths[0] < 25 and lengths[-1] > 80
    words = [{word for subject in FIELDS[post.field][0] for word in subject.split()} for post in data.posts]
    shown = [any(word in profile.text for word in FIELDS[profile.field][0]) for profile in data.profiles]
    assert sum(shown) < len(shown) / 20  # profiles name their field in words other than posts do
    assert all(words)


def test_written_files_read_back_as_the_world(tmp_path):
    write_jobs(tmp_path, **SMALL)
    pairs = list(Records(name="p", path=str(tmp_path / "preferences_dev.jsonl")).examples())
    world_pairs = examples("preferences_dev")
    assert [(e.query, e.candidates) for e in pairs] == [(e.query, e.candidates) for e in world_pairs]
    assert [e.confidence for e in pairs] == [pytest.approx(e.confidence, abs=0.005) for e in world_pairs]
    contrastive = list(Records(name="c", path=str(tmp_path / "contrastive.jsonl")).examples())
    assert [set(zip(e.candidates, e.relevance, strict=True)) for e in contrastive] == [
        set(zip(e.candidates, e.relevance, strict=True)) for e in examples("contrastive")
    ]
    folder = Beir(name="b", path=str(tmp_path / "test"))
    assert folder.qrels() == world("test", **SMALL).qrels()
    assert list(folder.corpus()) == list(world("test", **SMALL).corpus())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "train"}, f"part must be one of {', '.join(PARTS)}, got 'train'"),
        ({"shortlist": 1}, "shortlist must be >= 2, got 1"),
        ({"num_posts": 0}, "num_posts must be >= 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Jobs(**{"name": "jobs", **settings})


def test_the_vocabulary_is_consistent():
    for field, (of_posts, of_profiles, neighbour) in FIELDS.items():
        assert neighbour in FIELDS and neighbour != field
        assert len(of_posts) >= 2 and len(of_profiles) >= 3
    cities = [city for region in REGIONS.values() for city in region]
    assert len(set(cities)) == len(cities)
    bounds = sorted((low, high) for low, high, _ in LEVELS.values())
    assert all(first[1] < second[0] for first, second in pairwise(bounds))
