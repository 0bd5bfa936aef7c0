"""A listwise reranker in vLLM: what it is asked, that its answers are read as ours, and when it is refused."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.models.listwise.reranking import ListwiseReranker
from rankpo.models.listwise.vllm import VllmListwiseModel
from tests.models.saved import saved
from tests.models.test_listwise import TINY, model_of
from tests.models.test_reranker import model_of as pointwise_model_of
from tests.runs import train

DOCUMENTS = [f"{number} words" for number in range(13)]


class Engine:
    """Takes vllm.LLM's place, which is not here: greedy answers of plain transformers, one prompt after the other.

    asked: gets the arguments of every engine and call, in their order.
    """

    def __init__(self, asked, arguments):
        self.asked = asked
        self.asked.append(arguments)
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"]).eval()

    def generate(self, prompts, parameters, use_tqdm):
        assert use_tqdm is False
        self.asked.append({"prompts": prompts, "parameters": parameters})
        (stop,) = parameters["stop_token_ids"]
        config = GenerationConfig(
            max_new_tokens=parameters["max_tokens"], do_sample=False, eos_token_id=stop, pad_token_id=stop
        )
        outputs = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            written = self.model.generate(ids, generation_config=config)[0, ids.shape[1] :]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(written.tolist()))]))
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    package = ModuleType("vllm")
    asked = []
    package.LLM, package.SamplingParams = partial(engine, asked), lambda **arguments: arguments
    package.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm", package)
    return asked


def engine(asked, **arguments):
    return Engine(asked, arguments)


@pytest.fixture
def final(tmp_path):
    saved(model_of("model.decode=generate"), tmp_path / "FINAL", {})
    return tmp_path / "FINAL"


def lines(folder):
    return [json.loads(line) for line in (folder / "rerank.jsonl").read_text().splitlines()]


def rerank(folder, final, *overrides):
    requests = folder / "requests.jsonl"
    requests.write_text("".join(json.dumps({"query": f"q{n}", "documents": DOCUMENTS[n:]}) + "\n" for n in range(3)))
    keys = (f"model.load_from={final}", f"task.requests={requests}", f"cache_dir={folder}")
    return train("task=rerank", "model=base", "kind=listwise", *keys, *overrides).run_dir / "rerank"


def test_the_run_is_that_of_transformers(tmp_path, final, vllm):
    """Every window by both: equal answers, orders and files; vLLM gets our prompts, greedy, with our end token."""
    ours = rerank(tmp_path, final, "task.backend=transformers", "task.max_failed_windows=1", "exp_name=ours")
    assert vllm == []
    more = ("task.backend=vllm", "+task.vllm.dtype=float32", "task.max_failed_windows=1", "exp_name=theirs")
    theirs = rerank(tmp_path, final, *more)
    for name in ("run.trec", "rerank.jsonl"):
        assert (theirs / name).read_text() == (ours / name).read_text()
    answers = {window["response"] for line in lines(ours) for window in line["windows"]}
    assert len(answers) > 1 and all(answers)
    opened, first, *_ = vllm
    model = model_of("model.decode=generate")
    assert (opened["model"], opened["dtype"], opened["max_model_len"]) == (str(final), "float32", 1024)
    layout = model.inputs.layout
    assert first["parameters"] == {
        "temperature": 0.0, "max_tokens": layout.reserve(10), "stop_token_ids": [layout.end[-1]]
    }  # fmt: skip
    assert len(first["prompts"]) == 3  # the first windows of all queries go together
    text = model.tokenizer.decode(first["prompts"][1]["prompt_token_ids"])
    assert "q1" in text and all(document in text for document in DOCUMENTS[3:])


def test_its_answers_order_the_windows(tmp_path, final, vllm, monkeypatch):
    """B before A in each of two windows of ten; what stands behind the end token is no answer."""
    model = model_of("model.decode=generate")
    encode = model.tokenizer("B > A > ", add_special_tokens=False)["input_ids"]
    answer = (*encode, model.inputs.layout.end[-1], *model.tokenizer(" > C", add_special_tokens=False)["input_ids"])

    def generate(self, prompts, parameters, use_tqdm):
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)]) for _ in prompts]

    monkeypatch.setattr(Engine, "generate", generate)
    folder = rerank(tmp_path, final, "task.backend=vllm", "exp_name=r")
    first, *_ = lines(folder)
    assert [(window["start"], window["status"], window["response"]) for window in first["windows"]] == [
        (3, "repaired", "B > A > "), (0, "repaired", "B > A > ")
    ]  # fmt: skip
    order = [entry["first_rank"] - 1 for entry in first["ranking"]]
    # the lower window puts 4 before 3; the upper one holds 0 1 2 4 3 5 … 9 and puts 1 before 0
    assert order == [1, 0, 2, 4, 3, 5, 6, 7, 8, 9, 10, 11, 12]


def test_room_for_reasoning_is_asked_for(tmp_path, final, vllm):
    keys = ("model.decode=generate", "model.reasoning_tokens=40", "task.max_failed_windows=1", "exp_name=r")
    rerank(tmp_path, final, "task.backend=vllm", *keys)
    assert vllm[0]["max_model_len"] == 1024 + 40
    assert vllm[1]["parameters"]["max_tokens"] > 40


def test_reasoning_counts_among_the_positions():
    """max_length 2,040 and 40 tokens of reasoning are more than the model's 2,048 positions."""
    model_of("model.max_length=2040", "model.decode=generate", "model.reasoning_tokens=8")
    with pytest.raises(
        Exception, match=r"2040 with model.reasoning_tokens=40, but .* 2048 positions; lower it to 2008"
    ):
        model_of("model.max_length=2040", "model.decode=generate", "model.reasoning_tokens=40")


def test_an_error_of_the_engine_reaches_the_caller_or_marks_its_window(tmp_path, final, vllm, monkeypatch):
    def broken(self, prompts, parameters, use_tqdm):
        raise RuntimeError("engine core died")

    monkeypatch.setattr(Engine, "generate", broken)
    with pytest.raises(RuntimeError, match="engine core died"):
        rerank(tmp_path, final, "task.backend=vllm", "exp_name=x")
    more = ("task.on_window_error=keep", "task.max_failed_windows=1", "exp_name=kept")
    folder = rerank(tmp_path, final, "task.backend=vllm", *more)
    assert json.loads((folder / "rerank.json").read_text())["windows"] == {"ok": 0, "repaired": 0, "failed": 6}


def test_auto_takes_vllm_only_with_a_gpu(tmp_path, final, vllm, monkeypatch):
    rerank(tmp_path, final, "task.max_failed_windows=1", "exp_name=cpu")
    assert vllm == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr("rankpo.runs.processes.make_accelerator", _on_the_cpu)
    rerank(tmp_path, final, "task.max_failed_windows=1", "exp_name=gpu")
    assert len(vllm) > 1


def _on_the_cpu(precision, timeout_minutes):
    from contextlib import nullcontext

    return SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.backend=tgi",), "backend must be one of auto, transformers, vllm, got 'tgi'"),
        (("task.backend=vllm", "model.decode=first_token"), "gives no access to logits; set model.decode=generate"),
        (("task.backend=vllm", "model.use_peft=true"), "does not support adapters in training"),
    ],
)
def test_what_vllm_cannot_do(tmp_path, final, vllm, overrides, message):
    with pytest.raises(ConfigError, match=message):
        rerank(tmp_path, final, *overrides, "exp_name=x")
    assert vllm == []


def test_a_pointwise_reranker_needs_no_vllm(tmp_path, vllm):
    saved(pointwise_model_of("encoder"), tmp_path / "FINAL", {})
    (tmp_path / "r.jsonl").write_text(json.dumps({"query": "q", "documents": ["a"]}) + "\n")
    with pytest.raises(ConfigError, match="is for listwise rerankers, and this model computes scores"):
        train(
            "task=rerank", "model=tiny_bert", "kind=reranker", f"model.load_from={tmp_path}/FINAL", "task.backend=vllm",
            f"task.requests={tmp_path}/r.jsonl", "exp_name=x", f"cache_dir={tmp_path}",
        )  # fmt: skip


def test_from_python(final, vllm):
    config = compose([*TINY, "loss=softmax", f"model.load_from={final}"]).model
    inputs = config.open_inputs(lambda message: None)
    model = VllmListwiseModel(config, inputs, seed=1, arguments={"gpu_memory_utilization": 0.5})
    assert (vllm[0]["seed"], vllm[0]["gpu_memory_utilization"]) == (1, 0.5)
    assert sorted(index for index, _, _ in ListwiseReranker(model).rank("q", DOCUMENTS)) == list(range(13))
    with pytest.raises(ValueError, match="decode must be one of generate, got 'constrained'"):
        ListwiseReranker(model, decode="constrained")
