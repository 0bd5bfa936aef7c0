"""A held-out part of the queries: nothing of it is trained on, and it is evaluated with the run's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.data.holdout import HeldOutPart, Holdout, TrainingPart, draw, without
from rankpo.errors import ConfigError
from rankpo.evaluation.held_out import LossEvaluator
from rankpo.types import Example
from tests.runs import TINY, curve, final_weights, launch, train, trainer_of


class Listed:
    """A dataset of examples in memory."""

    weight = 1.0

    def __init__(self, examples: Sequence[Example], name: str = "listed") -> None:
        self.name, self.listed = name, examples

    def fingerprint(self) -> str:
        return str(self.listed)

    def examples(self):
        return iter(self.listed)


def example(query: str, positives: Sequence[str], negatives: Sequence[str] = ()) -> Example:
    known = (True,) * len(positives) + (False,) * len(negatives)
    relevance = tuple(map(float, known))
    return Example(query, (*positives, *negatives), relevance, id=f"{query}-{len(positives)}", relevant=known)


def split(datasets, tmp_path, size, by_texts=True):
    drawn = draw(datasets, Holdout(size=size, seed=3, by_texts=by_texts), tmp_path, lambda line: None)
    return [
        (list(TrainingPart(d, drawn).examples()), list(HeldOutPart(d, drawn, "holdout").examples())) for d in datasets
    ]


@pytest.mark.parametrize("size, expected", [(0.1, 10), (7, 7)])
def test_a_query_is_on_one_side_in_all_datasets_and_its_texts_are_no_positives(tmp_path, size, expected):
    """Queries stand in several rows and in two datasets, with other blanks; passages are shared at random."""
    random = np.random.default_rng(0)

    def rows(count: int, blank: str) -> list[Example]:
        drawn = random.integers(100, size=count)
        return [
            example(f"query{blank}{q}", [f"text {random.integers(300)}"], [f"text {random.integers(300)}"])
            for q in drawn
        ]

    first = [*rows(300, " "), *(example(f"query {q}", [f"own {q}"]) for q in range(100))]
    second = rows(200, "  ")
    parts = split([Listed(first), Listed(second, "second")], tmp_path, size)
    held = {" ".join(e.query.split()) for _, own in parts for e in own}
    trained = {" ".join(e.query.split()) for own, _ in parts for e in own}
    assert not held & trained
    assert len(held) >= expected and held | trained == {f"query {q}" for q in range(100)}
    relevant = {
        text for _, own in parts for e in own for text, known in zip(e.candidates, e.relevant, strict=True) if known
    }
    kept = {
        text for own, _ in parts for e in own for text, known in zip(e.candidates, e.relevant, strict=True) if known
    }
    assert not relevant & kept and kept


def test_without_takes_positives_alone_and_drops_what_teaches_nothing():
    from rankpo.data.random_keys import text_key

    known = frozenset({text_key("gone")})
    kept = without(example("q", ["stays", "gone"], ["gone no", "wrong"]), known)
    assert kept is not None and kept.candidates == ("stays", "gone no", "wrong") and kept.relevance == (1, 0, 0)
    assert without(example("q", ["gone"], ["wrong"]), known) is None
    as_negative = example("q", ["stays"], ["gone"])
    assert without(as_negative, known) is as_negative
    graded = Example("q", ("best", "gone", "worst"), (3.0, 2.0, 1.0), id="q")
    assert without(graded, known).candidates == ("best", "worst")
    assert without(Example("q", ("gone", "worst"), (2.0, 1.0), id="q"), known) is None
    scored = Example("q", ("gone",), (0.4,), id="q")
    assert without(scored, known) is None


def test_completions_are_split_by_prompt_alone(tmp_path):
    """Short answers belong to many prompts."""
    examples = [Example(f"prompt {number}", ("yes", "no"), (1.0, 0.0), id=str(number)) for number in range(10)]
    ((trained, held),) = split([Listed(examples)], tmp_path, 3, by_texts=False)
    assert (len(trained), len(held)) == (7, 3)


def test_all_queries_cannot_be_held_out(tmp_path):
    with pytest.raises(ValueError, match=r"trainer.holdout=5 would hold out 5 of 2 queries"):
        split([Listed([example("a", ["b"]), example("c", ["d"])])], tmp_path, 5)
    for size in (0, 1.5, -1):
        with pytest.raises(ConfigError, match=r"trainer.holdout must be a fraction in \(0, 1\) or a number of queries"):
            compose([*TINY, "datasets=[toy_contrastive]", "loss=contrastive", f"trainer.holdout={size}"])


QA = (*TINY, "loss=contrastive", "loss.temperature=0.1", "datasets=[toy_contrastive]")
CHAT = (
    *("model=tiny_llama", "kind=causal_lm", "model.random.num_hidden_layers=1", "datasets=[toy_chat]"),
    *("datasets.toy_chat.num_examples=10", "model.max_length=192", "model.max_prompt_length=160"),
    *("optimizer=sgd", "optimizer.lr=0.1", "scheduler=constant", "scheduler.warmup=0", "trainer.log_every=1"),
)
FAMILIES = {
    "contrastive": (QA, "ndcg@10"),
    "own negatives": ((*QA, "loss.negatives=own"), "ndcg@10"),
    "rankpo": ((*TINY, "loss=rankpo", "datasets=[toy_pairs]", "loss.reference_free=false"), "accuracy"),
    "lists": ((*TINY, "loss=listnet", "datasets=[toy_graded]"), "ndcg@10"),
    "distilled": ((*TINY, "loss=embed_distill", "datasets=[toy_graded]"), "ndcg@10"),
    "reranker": (
        (*CHAT[:1], "kind=reranker", CHAT[2], "model.max_length=128", "datasets=[toy_graded]", "loss=softmax"),
        "ndcg@10",
    ),
    "dpo": ((*CHAT, "loss=dpo"), "accuracy"),
    "kto": ((*CHAT, "loss=kto"), "accuracy"),
    "sft": ((*CHAT, "loss=sft"), "logps"),
}


SLOW = ("own negatives", "distilled", "lists", "sft", "dpo")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_the_loss_of_held_out_queries_is_the_training_loss_on_them(tmp_path, family, monkeypatch):
    """A run that trains on the held-out queries, and on no others, has it as the loss of its first update."""
    keys, metric = FAMILIES[family]
    keys = (*keys, "trainer.holdout=4", "trainer.batch_size=64", f"cache_dir={tmp_path}")
    trainer = trainer_of(*keys)
    loss = next(evaluator for evaluator in trainer.evaluators if isinstance(evaluator, LossEvaluator))
    assert trainer.evaluators[0].metrics[0] == metric
    assert trainer.settings.best_metric == f"holdout/{trainer.evaluators[0].metrics[0]}"
    measured = loss.evaluate(trainer.policy).metrics["loss"]
    monkeypatch.setattr(
        "rankpo.tasks.work.assemble.trained_parts",
        lambda datasets, drawn: [HeldOutPart(dataset, drawn, dataset.name) for dataset in datasets] if drawn else [],
    )
    other = trainer_of(*keys)
    update = other.begin(other.prepare(0))
    assert other.loss_value(update) == pytest.approx(measured, rel=1e-6)


def test_a_run_keeps_its_best_and_continues_exactly(tmp_path):
    keys = (*QA, "trainer.holdout=0.25", "trainer.epochs=3", "trainer.final=best", f"cache_dir={tmp_path}")
    train(*keys, "exp_name=whole")
    values = curve(tmp_path / "whole", "eval/holdout/ndcg@10")
    losses = curve(tmp_path / "whole", "eval/holdout/loss")
    assert len(values) == len(losses) == 4 and len(set(losses)) == 4
    best = 2 * values.index(max(values))
    assert (tmp_path / "whole" / "checkpoints" / f"step-{best}").is_dir()
    stopped = trainer_of(*keys, "exp_name=cut", "trainer.save_every=2")
    stopped.total_steps = 5
    stopped.watch.total_steps = 100
    stopped.finish = lambda: {}
    stopped.train()
    train(*keys, "exp_name=cut", "trainer.save_every=2", "resume=auto", "allow_changes=true")
    assert_close(final_weights(tmp_path / "cut"), final_weights(tmp_path / "whole"), rtol=0, atol=0)
    launched = launch(*keys, "exp_name=two", "trainer.max_tokens=100", processes=2)
    assert launched.returncode == 0, launched.stderr
    assert_close(curve(tmp_path / "two", "eval/holdout/loss"), losses, rtol=1e-5, atol=1e-6)
    assert_close(curve(tmp_path / "two", "eval/holdout/ndcg@10"), values, rtol=1e-5, atol=1e-6)


def test_best_by_loss_is_the_lowest(tmp_path):
    keys = (*QA, "trainer.holdout=4", "trainer.best_metric=holdout/loss", "trainer.epochs=2", f"cache_dir={tmp_path}")
    trainer = trainer_of(*keys)
    for step, value in enumerate((2.0, 1.0, 1.5)):
        trainer.state.step = step
        trainer.watch._note_best(value, {})
    assert (trainer.state.best_value, trainer.state.best_step) == (1.0, 1)
