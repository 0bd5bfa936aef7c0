"""What mining settings refuse, by key."""

import pytest

from rankpo.mining.settings import MiningSettings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "web"}, "source must be one of dense, bm25, fused, run, random, got 'web'"),
        ({"on_short": "stop"}, "on_short must be one of fewer, drop, relax, fill_random, error"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"range_min": 5, "range_max": 5}, "range_max must be > range_min=5 or null, got 5"),
        ({"near_duplicates": 1.5}, r"near_duplicates must be in \(0, 1\] or null, got 1.5"),
        ({"relative_margin": -0.1}, "relative_margin must be >= 0 or null"),
        ({"lambdas": [0.5, 0.0]}, r"lambdas must be numbers in \(0, 1\], got \[0.5, 0.0\]"),
        ({"lambdas": [0.5, 0.5]}, "lambdas must be different"),
        ({"score_by": "cross_encoder"}, "cross_encoder must name a saved reranker"),
        ({"cross_encoder": "x"}, "score_by must be cross_encoder, or audit_rows > 0"),
        ({"source": "random", "relative_margin": 0.1}, "score_by must be dense or cross_encoder for margins with sou"),
        ({"source": "fused", "absolute_margin": 0.1}, "score_by must be dense or cross_encoder for margins with sou"),
        ({"source": "random", "max_score": 0.1}, "score_by must be dense or cross_encoder for scores"),
        ({"source": "random", "sampling": "softmax"}, "score_by must be dense or cross_encoder for scores"),
        ({"source": "run"}, "run must name a TREC run"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        MiningSettings(**keys)


def test_what_needs_embeddings():
    assert MiningSettings().needs_dense
    assert not MiningSettings(source="bm25").needs_dense
    assert MiningSettings(source="bm25", sampling="cluster").needs_dense
    assert MiningSettings(source="random", score_by="dense", max_score=0.5).needs_dense


def test_variants_are_lambdas_where_they_mean_something():
    assert MiningSettings(lambdas=[0.9, 0.1]).variants == {"": 1.0}
    assert MiningSettings(sampling="cluster", lambdas=[0.3]).variants == {"": 0.3}
    found = MiningSettings(sampling="cluster", lambdas=[0.9, 0.1]).variants
    assert found == {"-lambda0.9": 0.9, "-lambda0.1": 0.1}
