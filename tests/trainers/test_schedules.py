"""Learning rates by hand."""

import pytest

from rankpo.errors import ConfigError
from rankpo.trainers.schedules import Schedule
from tests.runs import CONTRASTIVE, train


def values(total, **settings):
    schedule = Schedule(**settings)
    return [schedule.factor(step, total) for step in range(total)]


def test_warm_up_climbs_to_the_full_rate_after_it():
    """Three updates of warm-up: 1/4, 2/4, 3/4, and then 1."""
    assert values(6, kind="constant", warmup=3) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert values(4, kind="constant", warmup=0) == [1, 1, 1, 1]


def test_a_fraction_is_of_the_run_and_rounded_up():
    """0.1 of 12 updates is 1.2: two."""
    assert values(12, kind="constant", warmup=0.1)[:3] == pytest.approx([1 / 3, 2 / 3, 1])


def test_linear():
    """Five updates after none of warm-up: 5/5 … 1/5. Down to 0.5: half of the way."""
    assert values(5, kind="linear", warmup=0) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert values(5, kind="linear", warmup=0, final=0.5) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    assert values(6, kind="linear", warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_cosine():
    """(1 + cos(πt)) / 2 at t = 0, 1/4, 1/2, 3/4: 1, .853553, .5, .146447."""
    assert values(4, kind="cosine", warmup=0) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert values(4, kind="cosine", warmup=0, final=0.2)[2] == pytest.approx(0.6)


def test_warmup_stable_decay():
    """Ten updates, one of warm-up, the last four go down: 4/4, 3/4, 2/4, 1/4."""
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert values(10, kind="warmup_stable_decay", warmup=1, decay=4) == pytest.approx(expected)
    assert values(10, kind="warmup_stable_decay", warmup=1, decay=0.4) == pytest.approx(expected)


def test_a_warm_up_longer_than_the_run():
    assert values(3, kind="cosine", warmup=9) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosin"}, "kind must be one of constant, linear, cosine, warmup_stable_decay, got 'cosin'"),
        ({"warmup": -1}, "warmup must be >= 0 and finite, got -1"),
        ({"decay": float("nan")}, "decay must be >= 0 and finite, got nan"),
        ({"warmup": float("inf")}, "warmup must be >= 0 and finite, got inf"),
        ({"final": -0.1}, "final must be >= 0 and finite, got -0.1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)


@pytest.mark.parametrize(
    ("warmup", "decay", "total"), [(0.1, 0.2, 1), (0.5, 0.5, 7), (5, 5, 10), (0.7, 3, 10), (0.1, 0.9, 10), (0, 4, 4)]
)
def test_warm_up_and_decay_fit(warmup, decay, total):
    schedule = Schedule(kind="warmup_stable_decay", warmup=warmup, decay=decay)
    schedule.check(total)
    assert schedule.remark(total) is None


@pytest.mark.parametrize(("warmup", "decay", "total"), [(6, 5, 10), (0.6, 0.5, 10), (0.8, 3, 10), (8, 0.3, 10)])
def test_warm_up_and_decay_longer_than_the_run_are_refused(warmup, decay, total):
    with pytest.raises(ValueError, match=f"take 11 updates, but the run has {total}; lower them"):
        Schedule(kind="warmup_stable_decay", warmup=warmup, decay=decay).check(total)
    Schedule(kind="cosine", warmup=warmup, decay=decay).check(total)  # no decay of its own


def test_a_warm_up_as_long_as_the_run_is_said():
    line = Schedule(kind="cosine", warmup=9).remark(9)
    assert line is not None and line.startswith(
        "scheduler.warmup=9 updates covers this whole run of 9, so the learning"
    )
    assert Schedule(kind="cosine", warmup=9).remark(10) is None


def test_a_run_says_or_refuses_what_does_not_fit(tmp_path, capsys):
    train(*CONTRASTIVE, "trainer.max_steps=2", "scheduler.warmup=5", f"cache_dir={tmp_path}", "exp_name=long")
    assert "scheduler.warmup=5 updates covers this whole run of 2" in capsys.readouterr().err
    options = ("scheduler=warmup_stable_decay", "scheduler.warmup=2", "scheduler.decay=2", "trainer.max_steps=3")
    with pytest.raises(ConfigError, match=r"scheduler.warmup=2 and scheduler.decay=2 take 4 updates"):
        train(*CONTRASTIVE, *options, f"cache_dir={tmp_path}", "exp_name=both")
