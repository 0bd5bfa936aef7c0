"""The bound of the job-talent world: the judge alone agrees with itself, and the rules alone rank perfectly."""

from __future__ import annotations

import pytest

from rankpo.data.generated.jobs import Jobs
from rankpo.evaluation.jobs_oracle import oracle

PARTS = [
    Jobs(name="corpus", part="test", num_profiles=120, num_posts=10),
    Jobs(name="pairs", part="preferences_test", num_profiles=120, num_posts=10),
]


def test_bounds():
    judge, rules = oracle(PARTS, 0.0), oracle(PARTS, 1000.0)
    assert judge["pairs/accuracy"] == pytest.approx(1.0, abs=0.02)  # two profiles of one text may differ in utility
    assert rules["corpus/ndcg@20"] == pytest.approx(1.0) and rules["corpus/recall@100"] == pytest.approx(1.0)
    between = oracle(PARTS, 2.0)
    assert judge["corpus/ndcg@20"] < between["corpus/ndcg@20"] < 1
    assert rules["pairs/accuracy"] < between["pairs/accuracy"] < judge["pairs/accuracy"]
