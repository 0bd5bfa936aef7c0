"""Rerankers are trained by the losses on scores: they learn, keep the promise, and FINAL is what was measured."""

import json
import random

import numpy as np
import pytest
from torch.testing import assert_close

import rankpo
from rankpo.config.compose import compose
from rankpo.data.shape import Declares
from rankpo.errors import ConfigError
from rankpo.evaluation.lists import ListwiseEvaluator
from rankpo.types import Example
from tests.rerankers import RERANKERS
from tests.runs import curve, final_weights, launch, train, trainer_of
from tests.thinning import thinned

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
SMALL = (
    "model.random.num_hidden_layers=1",
    "model.max_length=64",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
PAIRS = ("model=tiny_bert", "kind=reranker", *SMALL, "model.max_length=256", "datasets=[toy_pairs]")


def record(seed, **more):
    """Six documents of three words; those with the word `yes` are relevant, whatever the query."""
    draw = random.Random(seed)
    texts = [" ".join(draw.sample(WORDS, 2)) for _ in range(6)]
    good = draw.sample(range(6), 2)
    return {
        "query": f"{draw.choice(WORDS)} {seed}",
        "pos": [f"{texts[n]} yes" for n in good],
        "neg": [f"{text} no" for n, text in enumerate(texts) if n not in good],
        **more,
    }


def write(path, records):
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    return path


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Lists to learn from, and lists of other queries."""
    folder = tmp_path_factory.mktemp("lists")
    write(folder / "train.jsonl", [record(seed) for seed in range(24)])
    write(folder / "held_out.jsonl", [record(seed) for seed in range(100, 120)])
    return folder


def on_lists(folder, *overrides):
    return (
        "model=tiny_bert",
        "kind=reranker",
        *SMALL,
        "datasets=[jsonl]",
        f"datasets.jsonl.path={folder}/train.jsonl",
        "eval_datasets=[jsonl]",
        f"eval_datasets.jsonl.path={folder}/held_out.jsonl",
        "eval_datasets.jsonl.name=held_out",
        "optimizer=adamw",
        "optimizer.lr=0.003",
        *overrides,
    )


@pytest.mark.parametrize("loss", thinned(["pointwise", "ranknet", "softmax", "lambdarank"], keep=["softmax"]))
def test_each_loss_learns_to_rank_held_out_queries(tmp_path, lists, loss):
    train(*on_lists(lists, f"loss={loss}", "trainer.epochs=8", "exp_name=x", f"cache_dir={tmp_path}"))
    ndcg = curve(tmp_path / "x", "eval/held_out/ndcg@10")
    assert ndcg[0] < 0.8 < 0.97 < ndcg[-1]
    assert curve(tmp_path / "x", "eval/held_out/auc")[-1] > 0.97


@pytest.mark.parametrize("head", thinned(["decoder", "yes_no"], keep=["yes_no"]))
def test_decoders_learn_too(tmp_path, lists, head):
    keys = (*RERANKERS[head], "loss=ranknet", "trainer.epochs=8", "exp_name=x", f"cache_dir={tmp_path}")
    train(*on_lists(lists, *keys))
    ndcg = curve(tmp_path / "x", "eval/held_out/ndcg@10")
    assert ndcg[-1] > max(0.97, ndcg[0])


def test_thirty_two_pairs_can_be_learned_by_heart(tmp_path):
    """Labels drawn by lot: what is learned here is not in the texts' kind but in the pairs."""
    draw = random.Random(3)
    pairs = [(f"query {n}", chr(65 + n) * 3, draw.randint(0, 1)) for n in range(32)]
    path = write(tmp_path / "flat.jsonl", [{"query": q, "content": d, "label": y} for q, d, y in pairs])
    keys = (
        "model=tiny_bert",
        "kind=reranker",
        *SMALL,
        "loss=pointwise",
        "datasets=[jsonl]",
        f"datasets.jsonl.path={path}",
    )
    more = ("optimizer=adamw", "optimizer.lr=0.02", "trainer.batch_size=32", "trainer.epochs=40")
    train(*keys, *more, "exp_name=x", f"cache_dir={tmp_path}")
    losses = curve(tmp_path / "x")
    assert losses[0] > 0.6
    assert losses[-1] < 0.05


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher that likes `yes` in five shades, the number in the text; membership of the lists is drawn by lot."""
    folder = tmp_path_factory.mktemp("teacher")
    for name, seeds in (("train", range(24)), ("held_out", range(100, 116))):
        records = []
        for seed in seeds:
            draw = random.Random(seed)
            texts = ["yes " * n + "no " * (5 - n) + draw.choice(WORDS) for n in draw.sample(range(6), 5)]
            scores = [text.count("yes") / 5 for text in texts]
            records.append(
                {
                    "query": f"q {seed}",
                    "pos": texts[:2],
                    "neg": texts[2:],
                    "pos_scores": scores[:2],
                    "neg_scores": scores[2:],
                }
            )
        write(folder / f"{name}.jsonl", records)
    return folder


@pytest.mark.parametrize("loss", thinned(["kl_distill", "margin_mse", "pointwise"], keep=["kl_distill"]))
def test_a_student_takes_its_teachers_order(tmp_path, teacher, loss):
    """Held-out lists, in the teacher's order: pairs that the student orders alike."""
    own = {
        "kl_distill": ["loss.teacher_temperature=0.1"],
        "margin_mse": ["loss.pairs=all"],
        "pointwise": ["loss.target=teacher", "trainer.epochs=20"],
    }
    keys = ("datasets.jsonl.scores_are=teacher", "exp_name=x", f"cache_dir={tmp_path}")
    train(*on_lists(teacher, f"loss={loss}", "trainer.epochs=12", *own[loss], *keys))
    model = rankpo.load(tmp_path / "x" / "FINAL", "cpu")
    agree = total = 0
    for line in (teacher / "held_out.jsonl").read_text().splitlines():
        item = json.loads(line)
        truth = np.array(item["pos_scores"] + item["neg_scores"])
        ours = np.array(model.compute_score([(item["query"], text) for text in item["pos"] + item["neg"]]))
        above = truth[:, None] > truth[None, :]
        agree += int((above & (ours[:, None] > ours[None, :])).sum())
        total += int(above.sum())
    assert agree / total > 0.95


@pytest.mark.parametrize("loss", thinned(["rankpo", "dpo", "simpo"], keep=["rankpo"]))
def test_preference_losses_run_on_rerankers(tmp_path, lists, loss):
    """Pairs of every list; held-out pairs come out in the right order."""
    more = {"rankpo": ("loss.reference_free=false", "loss.temperature=1")}.get(loss, ())
    keys = (f"loss={loss}", *more, "dataloader.pairs_per_example=4", "trainer.epochs=4", "exp_name=x")
    train(*on_lists(lists, *keys, f"cache_dir={tmp_path}"))
    ndcg = curve(tmp_path / "x", "eval/held_out/ndcg@10")
    assert ndcg[-1] > 0.97 > ndcg[0]
    margins = curve(tmp_path / "x", "train/rewards/margins")
    assert (margins[0] == pytest.approx(0, abs=1e-6)) == (loss != "simpo")  # a reference begins as the policy


def test_max_tokens_changes_nothing(tmp_path, lists):
    for name, budget in (("whole", 100000), ("parts", 60)):
        keys = (
            "loss=ranknet",
            "optimizer=sgd",
            "optimizer.lr=0.1",
            f"trainer.max_tokens={budget}",
            "trainer.max_steps=4",
        )
        train(*on_lists(lists, *keys, f"exp_name={name}", f"cache_dir={tmp_path}"))
    assert_close(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(tmp_path / "parts"), final_weights(tmp_path / "whole"), rtol=1e-4, atol=1e-5)


def test_two_processes_give_the_curve_of_one(tmp_path):
    """With a schedule: its horizon is that of one process too (RankLLM's cosine ends early)."""
    keys = (*PAIRS, "loss=dpo", "trainer.max_steps=3", "scheduler=cosine", "scheduler.warmup=1")
    keys = (*keys, "eval_datasets=[toy_pairs]", f"cache_dir={tmp_path}")
    train(*keys, "exp_name=one")
    done = launch(*keys, "exp_name=two", "trainer.max_tokens=300", processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    rates = curve(tmp_path / "one", "train/learning_rate")
    assert rates == curve(tmp_path / "two", "train/learning_rate") == pytest.approx([0.05, 0.1, 0.05])
    name = "eval/toy_pairs/margin"
    assert_close(curve(tmp_path / "two", name), curve(tmp_path / "one", name), rtol=1e-4, atol=1e-6)
    assert_close(final_weights(tmp_path / "two"), final_weights(tmp_path / "one"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["stored", "live", "adapters"])
def test_references_agree(tmp_path, source):
    """The first update's loss is ln 2 and the second's the same wherever the reference comes from."""
    keys = ("model=tiny_llama", "kind=reranker", "loss=dpo", "model.use_peft=true", "model.peft.lora_r=2")
    losses = {}
    for name in ("stored", source):
        more = (f"trainer.reference={name}", "trainer.max_steps=3", f"exp_name={name}", "overwrite=true")
        train(*PAIRS, *keys, *more, f"cache_dir={tmp_path}")
        losses[name] = curve(tmp_path / name)
    assert losses[source][0] == pytest.approx(np.log(2), abs=1e-5)
    assert abs(losses[source][2] - np.log(2)) > 1e-6
    assert_close(losses[source], losses["stored"], rtol=1e-5, atol=1e-6)


def test_final_is_what_was_measured_last(tmp_path, lists):
    keys = on_lists(lists, "loss=ranknet", "trainer.max_steps=3", "exp_name=x", f"cache_dir={tmp_path}")
    trainer = trainer_of(*keys)
    measured = trainer.train()
    model = rankpo.load(tmp_path / "x" / "FINAL", "cpu")
    (evaluator,) = trainer.evaluators
    again = evaluator.evaluate(model).metrics
    assert measured == pytest.approx({f"held_out/{name}": value for name, value in again.items()}, abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("loss=contrastive",), r"ContrastiveLoss needs embeddings; .* kind reranker.* try loss=softmax"),
        (("loss=rankpo", "loss.matryoshka_dims=[8]"), "loss.matryoshka_dims needs embeddings"),
        (
            ("loss=rankpo", "loss.replay_weight=0.5", "loss.replay_temperature=1"),
            "loss.replay_weight needs embeddings",
        ),
        (("loss=tdpo",), "needs token log-probabilities"),
    ],
)
def test_losses_that_no_reranker_can_serve_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        compose(["model=tiny_bert", "kind=reranker", "datasets=[toy_pairs]", *keys])


# lists as they are evaluated


class Lists(Declares):
    name = "lists"
    label_scale = 2

    def fingerprint(self):
        return "lists of the test"

    def examples(self):
        yield Example("q", ("a", "b", "c"), (1.0, 0.5, 0.0), "first")
        yield Example("r", ("d", "e", "d"), (1.0, 0.5, 0.0), "second")


class Scorer:
    """Gives these scores, in the order of the slots."""

    def __init__(self, scores):
        from rankpo.models.random_weights import byte_tokenizer
        from rankpo.models.reranker.inputs import RerankerInputs
        from rankpo.models.reranker.settings import RerankerSettings

        self.inputs = RerankerInputs(byte_tokenizer(), RerankerSettings())
        self.scores = np.array(scores, dtype=np.float32)

    def slot_scores(self, table):
        return self.scores


def test_lists_are_measured_by_hand(tmp_path):
    """Grades (2, 1, 0) scored (1, 3, 2): order b c a, dcg 1 + 0 + 3/2 of 3 + 1/log2(3); e d of grades 1, 2 likewise.

    `d` stands twice with grades 2 and 0: once, with 2.
    """
    evaluator = ListwiseEvaluator(Lists(), tmp_path, ["ndcg@10", "mrr@10"], lambda message: None)
    found = evaluator.evaluate(Scorer([1, 3, 2, 5, 6, 5])).metrics
    ideal = 3 + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx(np.mean([(1 + 3 / 2) / ideal, (1 + 3 / np.log2(3)) / ideal]))
    assert found["mrr@10"] == 1
    assert found["map"] == pytest.approx(np.mean([(1 + 2 / 3) / 2, 1]))
    assert found["auc"] == pytest.approx(0.5)  # of the first alone: the second has no other document


def test_ties_go_by_the_text_and_never_by_the_file(tmp_path):
    """SHA-256 of a, b, c begins ca, 3e, 2e: downwards a, b, c; of d, e 18, 3f: e before d."""
    evaluator = ListwiseEvaluator(Lists(), tmp_path, ["ndcg@10"], lambda message: None)
    run = evaluator.evaluate(Scorer([0] * 6)).per_query
    ideal = 3 + 1 / np.log2(3)
    assert run["first"]["ndcg@10"] == pytest.approx(1)
    assert run["second"]["ndcg@10"] == pytest.approx((1 + 3 / np.log2(3)) / ideal)


@pytest.mark.parametrize("largest", [0.3, 0.5, 1.0, 2.0, 49.0])
def test_lists_on_any_scale(tmp_path, largest):
    """Grades in 49ths of the scale; a scale of at most 1 has its bar at the half, a longer one at grade 1."""

    class Scaled(Lists):
        label_scale = largest

        def fingerprint(self):
            return f"lists up to {largest}"

        def examples(self):
            grades = (1.0, 0.5, 1 / 49, 0.0)
            yield Example("q", ("a", "b", "c", "d"), grades, "first")

    evaluator = ListwiseEvaluator(Scaled(), tmp_path, ["recall@2", "precision@4"], lambda message: None)
    found = evaluator.evaluate(Scorer([0, 1, 3, 2])).metrics  # c d b a
    relevant = 3 if largest == 49 else 2
    assert found["precision@4"] == relevant / 4
    assert found["recall@2"] == (relevant == 3) / relevant
