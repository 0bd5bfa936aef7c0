"""The round trip of online alignment: task=sample, task=annotate task.mode=samples, and training on what it wrote."""

from __future__ import annotations

import json
import math

import pytest
import torch

import rankpo
from rankpo.data.readers.chat import ChatRecords
from rankpo.errors import ConfigError
from rankpo.judges.samples import read_samples
from tests.judges.server import merit, serving
from tests.runs import curve, train

TINY = (
    "model=tiny_pythia",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
)
DATA = ("datasets=[toy_chat]", "datasets.toy_chat.num_examples=10")
STEPS = ("trainer.batch_size=4", "trainer.log_every=1", "scheduler=constant", "scheduler.warmup=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A reward model that moved away from its start, and three completions of each prompt."""
    folder = tmp_path_factory.mktemp("world")
    learning = (*STEPS, "optimizer.lr=0.003", "trainer.max_steps=4")
    train(*TINY, *DATA, *learning, "loss=bradley-terry", f"cache_dir={folder}", "exp_name=reward")
    length = ("task.max_new_tokens=16", "task.num_samples=3")
    train(*TINY, *DATA, *length, "task=sample", f"cache_dir={folder}", "exp_name=policy")
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def annotate(folder, name, *overrides):
    samples = f"task.samples={folder}/policy/sample/samples.jsonl"
    mode = ("task=annotate", "kind=causal_lm", "task.mode=samples", samples)
    train(*TINY, *mode, *overrides, f"cache_dir={folder}", f"exp_name={name}")
    return folder / name / "annotate" / "feedback.jsonl"


def with_scores(folder):
    return ("judge=scores", f"judge.path={folder}/reward/FINAL", "judge.device=cpu")


def turns_of(record):
    return tuple((turn["role"], turn["content"]) for turn in record["prompt"])


def rewards_by_transformers(folder, record, texts):
    """Of completions behind a prompt, by transformers' own class on the whole conversation, one at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    final = folder / "reward/FINAL"
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    start = tokenizer.apply_chat_template(record["prompt"], tokenize=False, add_generation_prompt=True)
    found = []
    for text in texts:
        ids = tokenizer(start + text + tokenizer.eos_token, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(float(model(input_ids=ids).logits[0, 0]))
    return found


def test_a_saved_reward_model_gives_its_rewards(world):
    model = rankpo.load(world / "reward/FINAL", "cpu")
    record = lines(world / "policy/sample/samples.jsonl")[0]
    texts = ["Blue.", "I would say: Green."]
    found = model.rewards([turns_of(record)] * 2, texts)
    assert found.tolist() == pytest.approx(rewards_by_transformers(world, record, texts), abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-4


def test_from_samples_by_a_reward_model_to_dpo(world):
    """The chosen completion of every pair has the larger reward; dpo starts at log 2 on the pairs and lowers it."""
    path = annotate(world, "pairs", *with_scores(world))
    records = lines(path)
    prompts = {record["prompt_id"] for record in lines(world / "policy/sample/samples.jsonl")}
    assert {record["prompt_id"] for record in records} == prompts
    for record in records[:3]:
        texts = [record[f"output_{letter}"][0]["content"] for letter in "AB"]
        first, second = rewards_by_transformers(world, record, texts)
        assert record["label"] == int(first > second)
        assert record["p"] == pytest.approx(
            1 / (1 + math.exp(second - first)), abs=0.006
        )  # the judge says whole percents
    assert {record["label"] for record in records} == {0, 1}
    (example,) = (e for e in ChatRecords(name="c", path=str(path)).examples() if e.source.endswith(":1"))
    better = "A" if records[0]["label"] else "B"
    assert example.query == turns_of(records[0])
    assert example.candidates[0] == records[0][f"output_{better}"][0]["content"]
    chat = (
        "loss=dpo",
        "datasets=[chat]",
        f"datasets.chat.path={path}",
        *STEPS,
        "optimizer.lr=0.01",
        "trainer.epochs=6",
    )
    train(*TINY, *chat, f"cache_dir={world}", "exp_name=dpo")
    losses = curve(world / "dpo")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.6


def test_scalar_feedback_of_every_completion(world):
    path = annotate(world, "scalars", "task.feedback=scalar", *with_scores(world))
    records, sampled = lines(path), lines(world / "policy/sample/samples.jsonl")
    written = [record for record in sampled if record["output"].strip()]
    assert [(r["prompt_id"], r["output"][0]["content"]) for r in records] == [
        (r["prompt_id"], r["output"]) for r in written
    ]
    first = [record for record in records if record["prompt_id"] == records[0]["prompt_id"]]
    expected = rewards_by_transformers(world, first[0], [record["output"][0]["content"] for record in first])
    assert [record["reward"] for record in first] == pytest.approx(expected, abs=1e-5)
    examples = list(ChatRecords(name="c", path=str(path)).examples())
    assert len(examples) == len({record["prompt_id"] for record in records})
    assert sum(len(example.candidates) for example in examples) == len(records)
    (world / "reward/FINAL/model.safetensors").rename(world / "away")  # all scores are known: nobody is asked
    try:
        assert annotate(world, "scalars", "task.feedback=scalar", *with_scores(world)).read_text() == path.read_text()
    finally:
        (world / "away").rename(world / "reward/FINAL/model.safetensors")


@pytest.mark.parametrize("template", ["pair", "chat"])
def test_a_server_compares_completions(world, template):
    with serving() as server:
        judge = ("judge=openai", f"judge/template={template}", f"judge.base_url={server.url}", "judge.model=loopback")
        path = annotate(world, template, *judge, "task.pairs.per_query=2", f"+judge.extra.user={template}")
        asked = sum(server.calls.values())
    records = lines(path)
    assert asked == 2 * len(records) > 20
    for record in records:
        a, b = (record[f"output_{letter}"][0]["content"] for letter in "AB")
        assert record["label"] == int(merit(a) > merit(b))
        assert (record["type"], record["confidence_score"], record["p"]) == (
            "pairwise_feedback",
            90,
            pytest.approx(0.9 if record["label"] else 0.1),
        )


def test_plain_prompts_stay_plain_and_empty_completions_are_left_out(tmp_path):
    """Two models' samples of one prompt are compared; a training prompt is the text as it was."""
    for number, outputs in enumerate([(" blue.", "  "), (" a value 7.", " blue.")]):
        several = [
            {"type": "sample", "prompt_id": "p", "prompt": "The sky is", "output": text, "sample_id": n, "dataset": "d"}
            for n, text in enumerate(outputs)
        ]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in several))
    with serving() as server:
        judge = ("judge=openai", f"judge.base_url={server.url}", "judge.model=loopback", "task.pairs.per_query=9")
        mode = ("task=annotate", "kind=causal_lm", "task.mode=samples", f"task.samples={tmp_path}/?.jsonl")
        train(*TINY, *mode, *judge, f"cache_dir={tmp_path}/c", "exp_name=a")
    examples = list(ChatRecords(name="c", path=str(tmp_path / "c/a/annotate/feedback.jsonl")).examples())
    assert len(examples) == 2  # of three pairs one has equal texts
    assert {(e.query, e.candidates) for e in examples} == {("The sky is", (" a value 7.", " blue."))}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.mode=samples"], "samples must be set with mode=samples"),
        (["task.mode=samples", "task.samples=missing.jsonl"], "missing.jsonl does not exist"),
        (["task.mode=lists", "task.order=given", "task.min_confidence=50"], "compares two answers for each list"),
        (["task.feedback=scalar"], "feedback=scalar needs mode=samples"),
        (["task.mode=samples", "task.samples={good}", "task.feedback=scalar"], "needs judge=scores"),
        (["task.mode=samples", "task.samples={good}"], "no pair can be drawn"),
        (["task.mode=samples", "task.samples={judged}"], r"judged.jsonl:1: type is 'pairwise_feedback'"),
    ],
)
def test_faults_say_what_to_change(tmp_path, overrides, message):
    sample = {"type": "sample", "prompt_id": "p", "prompt": "Sky?", "output": "Blue.", "sample_id": 0}
    (tmp_path / "good.jsonl").write_text(json.dumps(sample) + "\n")
    (tmp_path / "judged.jsonl").write_text(json.dumps({**sample, "type": "pairwise_feedback"}) + "\n")
    names = {name: tmp_path / f"{name}.jsonl" for name in ("good", "judged")}
    given = [item.format(**names) for item in overrides]
    with pytest.raises((ConfigError, ValueError), match=message):
        train("task=annotate", "kind=causal_lm", *TINY, *given, f"cache_dir={tmp_path}")


def test_which_completions_were_cut_goes_into_the_feedback(tmp_path):
    """A completion that max_new_tokens ended is trained without an end token, whichever kind of feedback names it."""
    sample = {"type": "sample", "prompt_id": "p", "prompt": [{"role": "user", "content": "Sky?"}], "sample_id": 0}
    outputs = [{"output": "Blue.", "finished": True}, {"output": "Gre", "finished": False}]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({**sample, **output}) + "\n" for output in outputs))
    samples = read_samples(str(path))
    judged = {
        "query_id": "p",
        "passage1": "Gre",
        "passage2": "Blue.",
        "preferred": "B",
        "p": 0.1,
        "confidence_score": 90,
    }
    (tmp_path / "pairs.jsonl").write_text(samples.pairwise(judged))
    (example,) = ChatRecords(name="c", path=str(tmp_path / "pairs.jsonl")).examples()
    assert (example.candidates, example.finished) == (("Blue.", "Gre"), (True, False))
    assert samples.ending("p", "Gre", "finished") == {"finished": False}
    assert samples.ending("p", "Blue.", "finished") == {}
