"""task=sample as a user runs it: what is drawn, resuming, processes, vLLM's call; and the loop sample, annotate, dpo."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from rankpo.config.compose import compose
from rankpo.data.random_keys import random_keys, text_key
from rankpo.errors import ConfigError
from rankpo.judges.records import Records
from rankpo.models.causal_lm.sampling import ChosenByNumber, Draw, Reader, Sampling, TransformersWriter
from tests.runs import launch, train

TINY = (
    "model=tiny_pythia",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
    "datasets=[toy_chat]",
    "datasets.toy_chat.num_examples=8",
)
SAMPLE = (*TINY, "task=sample", "task.num_samples=2", "task.max_new_tokens=12", "task.max_tokens=500")


def options(*overrides):
    """SAMPLE with further ones, and without the keys of what they replace."""
    gone = {"datasets=[]": "datasets.", "model=tiny_bert": "model."}
    prefixes = tuple(prefix for item, prefix in gone.items() if item in overrides)
    return [item for item in SAMPLE if not (prefixes and item.startswith(prefixes))] + [*overrides]


def sample(folder, name, *overrides):
    train(*options(*overrides), f"cache_dir={folder}", f"exp_name={name}")
    return folder / name / "sample"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def silent(message):
    pass


def built(*overrides):
    """The tiny model that the task builds, with its reader."""
    from rankpo.tasks.seeds import seed_everything

    experiment = compose([*SAMPLE, *overrides])
    seed_everything(experiment.seed)
    model = experiment.model.build(experiment.model.open_inputs(silent), silent).eval()
    model.base.config._attn_implementation = "sdpa"
    return model, Reader(model.inputs)


def by_hand(model, ids, numbers, temperature, top_p, stops):
    """One completion alone, token by token, without padding: the smallest set of likely tokens, then the first whose
    running sum exceeds the number."""
    ids, written = list(ids), []
    for number in numbers:
        logits = model.base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        p = torch.softmax(logits / temperature, 0).detach().numpy()
        order = np.argsort(-p)
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
        token = int(np.argmax(np.cumsum(p) > number * p.sum()))
        written.append(token)
        ids.append(token)
        if token in stops:
            break
    return written


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.3, 0.6)])
def test_completions_are_those_drawn_by_hand_one_by_one(tmp_path, temperature, top_p):
    """A batch, left padding, the cache and the checkpoint's own penalty change nothing; numbers come from the prompt's id."""
    folder = sample(tmp_path, "run", f"task.temperature={temperature}", f"task.top_p={top_p}")
    model, reader = built()
    found = lines(folder / "samples.jsonl")
    assert [record["sample_id"] for record in found] == [0, 1] * (len(found) // 2)
    for record in found[:6]:
        prompt = tuple((turn["role"], turn["content"]) for turn in record["prompt"])
        (ids,) = reader.ids([prompt])
        keys = random_keys(12, 42, text_key(record["prompt_id"]), record["sample_id"])
        numbers = [int(key >> np.uint64(24)) / 2**40 for key in keys]
        expected = by_hand(model, ids.tolist(), numbers, temperature, top_p, reader.stops)
        expected = expected[:-1] if expected[-1] in reader.stops else expected
        assert record["output"] == reader.tokenizer.decode(expected, skip_special_tokens=True)
    assert len({record["output"] for record in found}) > len(found) / 2


def test_a_checkpoints_own_settings_are_no_part_of_the_policy():
    model, reader = built()
    prompt = (("user", "What colour is snow?"),)
    draw = Draw("p", 0, prompt, reader.ids([prompt])[0])
    expected = by_hand(model, draw.ids.tolist(), [0.0] * 16, 1.0, 1e-9, reader.stops)
    assert len(set(expected)) < len(expected)  # something is said twice, which these would forbid
    model.base.generation_config.repetition_penalty = 9.0
    model.base.generation_config.no_repeat_ngram_size = 1
    writer = TransformersWriter(model, Sampling(seed=1, temperature=0, max_new_tokens=16), 500, nullcontext)
    assert writer.write([draw]) == [reader.completion(draw, expected)]


def test_numbers_choose_tokens_by_the_running_sum():
    """p = .5, 0, .25, .25: below .5 the first, above it the third (the second has no chance), above .75 the last."""
    scores = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().repeat(5, 1)
    numbers = torch.tensor([[0.0], [0.499], [0.501], [0.751], [1 - 2.0**-40]], dtype=torch.float64)
    chosen = ChosenByNumber(numbers, 3)(torch.zeros(5, 3, dtype=torch.long), scores)
    assert chosen.argmax(1).tolist() == [0, 0, 2, 3, 3]
    assert torch.isfinite(chosen).sum(1).tolist() == [1] * 5
    without_first = ChosenByNumber(numbers[:1], 3)(
        torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0.0, 1.0]]).log()
    )
    assert without_first.argmax(1).tolist() == [1]  # the smallest number, too, leaves out what has no chance


def test_both_forms_are_written_and_each_prompt_is_asked_once(tmp_path):
    folder = sample(tmp_path, "run", "datasets.toy_chat.num_examples=30", "task.max_new_tokens=3")
    prompts = {
        example.query for example in compose([*SAMPLE, "datasets.toy_chat.num_examples=30"]).datasets[0].examples()
    }
    assert len(prompts) < 30
    records = lines(folder / "samples.jsonl")
    assert len(records) == 2 * len(prompts)
    assert {tuple((t["role"], t["content"]) for t in record["prompt"]) for record in records} == prompts
    assert {record["type"] for record in records} == {"sample"}
    firsts = json.loads((folder / "alpaca_eval.json").read_text())
    assert len(firsts) == len(prompts)
    assert {tuple(record) for record in firsts} == {("dataset", "instruction", "output", "generator")}
    assert [record["output"] for record in firsts] == [r["output"] for r in records if r["sample_id"] == 0]
    assert firsts[0]["generator"] == "run"


def test_killed_and_started_again_it_ends_as_if_undisturbed(tmp_path, monkeypatch):
    """Killed behind the second completion, in the middle of the first batch, with half a line written."""
    whole = sample(tmp_path, "whole")
    kept, add = [], Records.add

    def dying(self, record):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(record["key"])
        add(self, record)

    monkeypatch.setattr(Records, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, "cut")
    monkeypatch.setattr(Records, "add", add)
    part = tmp_path / "cut/sample/draws-0.jsonl"
    with part.open("ab") as file:
        file.write(b'{"key": "half')
    before = part.read_bytes().splitlines()[:2]
    folder = sample(tmp_path, "cut")
    assert (folder / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    after = part.read_bytes().splitlines()
    assert after[:2] == before
    assert len({json.loads(line)["key"] for line in after}) == len(after) == 16


def test_more_samples_and_another_budget_leave_what_there_is(tmp_path):
    first = lines(sample(tmp_path, "run") / "samples.jsonl")
    more = lines(sample(tmp_path, "run", "task.num_samples=3", "task.max_tokens=120") / "samples.jsonl")
    other = lines(sample(tmp_path, "other", "task.num_samples=3", "task.max_tokens=120") / "samples.jsonl")
    assert [record for record in more if record["sample_id"] < 2] == first
    assert more == other


def test_two_processes_write_what_one_writes(tmp_path):
    one = sample(tmp_path, "one", "task.temperature=0.8")
    done = launch(*SAMPLE, "task.temperature=0.8", f"cache_dir={tmp_path}", "exp_name=two", processes=2)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two/sample"
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()
    assert all(lines(two / f"draws-{rank}.jsonl") for rank in range(2))


def test_other_settings_are_refused_until_overwritten(tmp_path):
    sample(tmp_path, "run", "task.max_new_tokens=2")
    with pytest.raises(ConfigError, match="a different temperature"):
        sample(tmp_path, "run", "task.max_new_tokens=2", "task.temperature=0.5")
    folder = sample(tmp_path, "run", "task.max_new_tokens=2", "task.temperature=0.5", "overwrite=true")
    assert len(lines(folder / "draws-0.jsonl")) == 16


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [
        {"instruction": "Sky?", "dataset": "helpful_base"},
        {"prompt": "The sky is", "id": 7},
        {"prompt": [{"role": "user", "content": "Grass?"}], "prompt_id": "g"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    folder = sample(tmp_path, "run", f"task.prompts={path}", "datasets=[]", "task.num_samples=1")
    found = lines(folder / "samples.jsonl")
    assert [record["prompt_id"] for record in found] == ["prompts.jsonl:1", "7", "g"]
    assert [record["dataset"] for record in found] == ["helpful_base", "prompts.jsonl", "prompts.jsonl"]
    assert found[0]["prompt"] == [{"role": "user", "content": "Sky?"}]
    assert found[1]["prompt"] == "The sky is"
    path.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n')
    with pytest.raises(ValueError, match="'1' has two prompts"):
        sample(tmp_path, "other", f"task.prompts={path}")
    path.write_text('{"question": "a"}\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl:1: no field 'prompt'"):
        sample(tmp_path, "other", f"task.prompts={path}")


def test_what_ends_a_turn_is_no_part_of_a_completion():
    """A template with a line break before its end token; text behind the end; a plain prompt's blank."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n[SEP]' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    model, _ = built()
    settings = type(model.settings)(max_length=192, max_prompt_length=160, chat_template=template)
    reader = Reader(type(model.inputs)(model.tokenizer, settings))
    encode = lambda text: reader.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    chat = Draw("p", 0, (("user", "Sky?"),), np.array(encode("Sky?")))
    found = reader.completion(chat, encode("Blue.\n[SEP]and more"))
    assert (found.text, found.finished, found.tokens) == ("Blue.", True, 7)
    unfinished = reader.completion(chat, encode("Blue.\n"))
    assert (unfinished.text, unfinished.finished, unfinished.tokens) == ("Blue.\n", False, 6)
    plain = Draw("p", 0, "The sky is", np.array(encode("The sky is")))
    assert reader.completion(plain, encode(" blue.\n[SEP]")).text == " blue.\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.temperature=-1"], "temperature must be >= 0"),
        (["task.temperature=0"], "num_samples must be 1, got 2"),
        (["task.top_p=0"], r"top_p must be in \(0, 1\]"),
        (["task.backend=tgi"], "backend must be one of auto, transformers, vllm"),
        (["task.prompts=missing.jsonl"], "missing.jsonl does not exist"),
        (["task.max_new_tokens=2000"], "exceed the model's 1024 positions"),
        (["task.backend=vllm"], "cannot run random weights"),
        (["model=tiny_bert"], "model=llama"),
        (["datasets=[]"], "or set task.prompts=FILE"),
    ],
)
def test_faults_say_what_to_change(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        sample(tmp_path, "run", *overrides)


def test_vllm_is_asked_for_the_same_prompts_with_seeds_of_their_own(tmp_path, monkeypatch):
    """The package is not here: what stands in for it notes its arguments and answers in vLLM's form."""
    train(*TINY, "loss=sft", "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=model")
    asked = {}

    class Model:
        def __init__(self, **arguments):
            asked["model"] = arguments

        def generate(self, prompts, parameters, use_tqdm):
            asked["prompts"], asked["parameters"] = prompts, parameters
            answer = [*b"ok"]
            ids = [reader.tokenizer(chr(letter), add_special_tokens=False)["input_ids"][0] for letter in answer]
            output = SimpleNamespace(token_ids=(*ids, reader.stops[0]), finish_reason="stop")
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    package = ModuleType("vllm")
    package.LLM, package.SamplingParams = Model, lambda **arguments: arguments
    package.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm", package)
    _, reader = built()
    final = tmp_path / "model/FINAL"
    more = ("task.backend=vllm", f"model.load_from={final}", "+task.vllm.dtype=float16")
    folder = sample(tmp_path, "run", *more)
    assert asked["model"]["model"] == str(final)
    assert (asked["model"]["dtype"], asked["model"]["max_model_len"]) == ("float16", 160 + 1 + 12)
    records = lines(folder / "samples.jsonl")
    assert {record["output"] for record in records} == {"ok"}
    assert len({parameters["seed"] for parameters in asked["parameters"]}) == len(records) == len(asked["prompts"])
    prompt = tuple((turn["role"], turn["content"]) for turn in records[0]["prompt"])
    assert asked["prompts"][0]["prompt_token_ids"] == reader.ids([prompt])[0].tolist()
    assert asked["parameters"][0]["stop_token_ids"] == reader.stops
    assert all(0 <= parameters["seed"] < 2**63 for parameters in asked["parameters"])
