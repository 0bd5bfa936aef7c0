"""judge=openai against `transformers serve`: a real OpenAI-compatible server, with a random model on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from rankpo.tasks.annotate import Unfinished
from tests.judges import language_model
from tests.runs import ROOT, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs: pip install -e .[serve]"),
]
QUERIES, PASSAGES, PER_QUERY = 3, 5, 3


@dataclass
class Served:
    url: str
    folder: Path
    tokens: list[int]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """The server's own process, from `transformers serve FOLDER` to its end."""
    folder = tmp_path_factory.mktemp("model")
    tokens = language_model.write(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
            yield Served(f"http://127.0.0.1:{port}/v1", folder, tokens)
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def files(tmp_path) -> Path:
    queries = [{"_id": f"q{n}", "text": f"what about {n}?"} for n in range(QUERIES)]
    passages = [{"_id": f"p{n}", "text": f"passage {n}: {'fox den whale sea '[n : n + 9]}"} for n in range(PASSAGES)]
    for name, records in (("queries", queries), ("passages", passages)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [f"q{q} Q0 p{p} {p + 1} {PASSAGES - p} tag" for q in range(QUERIES) for p in range(PASSAGES)]
    (tmp_path / "run.trec").write_text("\n".join(lines) + "\n")
    return tmp_path


def annotate(served: Served, files: Path, *more: str) -> tuple[list[dict], dict, list[dict]]:
    """Preferences, report and failures."""
    train(
        "task=annotate", "model=tiny_bert", "judge=openai", f"judge.base_url={served.url}",
        f"judge.model={served.folder}", "judge.max_tokens=12", "judge.concurrency=3", f"task.run={files}/run.trec",
        f"task.queries={files}/queries.jsonl", f"task.corpus={files}/passages.jsonl", f"task.pairs.per_query={PER_QUERY}",
        "task.on_disagreement=keep", f"cache_dir={files}/cache", "exp_name=a", *more,
    )  # fmt: skip
    folder = files / "cache" / "a" / "annotate"
    preferences, failed = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("preferences.jsonl", "failed.jsonl")
    )
    return preferences, json.loads((folder / "report.json").read_text()), failed


class Expected:
    """What the model says, by transformers in this process: the likelier of the two tokens that are whole answers."""

    def __init__(self, served: Served) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(served.folder)
        self.model = AutoModelForCausalLM.from_pretrained(served.folder).eval()
        self.tokens = served.tokens
        self.template = OmegaConf.load(ROOT / "config" / "judge" / "template" / "pair.yaml")
        self.prompt_tokens = 0

    def answer(self, query: str, a: str, b: str) -> str:
        content = self.template.prompt.replace("{criteria}", self.template.criteria)
        content = content.replace("{query}", query).replace("{passage_a}", a).replace("{passage_b}", b)
        turns = [{"role": "system", "content": self.template.system}, {"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self.prompt_tokens += ids.shape[1]
        with torch.no_grad():
            first, second = self.model(input_ids=ids).logits[0, -1, self.tokens].tolist()
        return "A" if first > second else "B"


def only_answers(served: Served) -> tuple[str, str]:
    """Keys of the request that leave the model the choice between its two answers: OpenAI's own logit_bias."""
    bias = ",".join(f"{token}:1000.0" for token in served.tokens)
    return f"+judge.extra.logit_bias={{{bias}}}", "judge.max_tokens=1"


def test_verdicts_are_the_models_own(served, files):
    """A at 80 and B at 70: passage 1 twice is (.8 + .7)/2, passage 2 twice (.3 + .2)/2, the same letter twice .5."""
    preferences, report, failed = annotate(served, files, *only_answers(served))
    assert (len(preferences), failed) == (QUERIES * PER_QUERY, [])
    expected = Expected(served)
    chances = {("A", "B"): 0.75, ("B", "A"): 0.25, ("A", "A"): 0.5, ("B", "B"): 0.5}
    seen = set()
    for record in preferences:
        given = expected.answer(record["query"], record["passage1"], record["passage2"])
        swapped = expected.answer(record["query"], record["passage2"], record["passage1"])
        assert [call["preferred"] for call in record["calls"]] == [given, swapped]
        assert [call["confidence"] for call in record["calls"]] == [{"A": 80, "B": 70}[x] for x in (given, swapped)]
        assert record["p"] == pytest.approx(chances[given, swapped])
        assert record["agree"] == (given != swapped)
        assert record["model"].startswith(str(served.folder))
        seen |= {given, swapped}
    assert seen == {"A", "B"}, "a model that always says the same would show nothing"
    tokens = {"prompt_tokens": expected.prompt_tokens, "completion_tokens": 2 * len(preferences)}
    assert report["cost"]["tokens"] == tokens
    _, again, _ = annotate(served, files, *only_answers(served))
    assert (again["cost"]["calls"], again["cost_of_all_starts"]["tokens"]) == (0, tokens)


def test_words_that_name_no_preference_are_counted_reported_and_asked_again_on_request(served, files, capsys):
    """A random model's bytes: no pair gets a verdict, none is guessed; every attempt is one more paid call."""
    pairs = QUERIES * PER_QUERY
    preferences, report, failed = annotate(served, files)
    assert (preferences, report["pairs"], report["failed"], len(failed)) == ([], 0, pairs, pairs)
    assert {line["kind"] for line in failed} == {"unparsable"}
    assert report["cost"]["calls"] == 2 * pairs, "asked, and asked once more; the other order is not paid for"
    assert f"{pairs} had answers without a verdict: a larger task.max_reasks" in capsys.readouterr().err
    _, again, _ = annotate(served, files)
    assert (again["failed"], again["cost"]["calls"]) == (pairs, 0), "the answers are known"
    _, more, _ = annotate(served, files, "task.max_reasks=2")
    assert (more["failed"], more["cost"]["calls"], more["cost"]["cached_answers"]) == (pairs, pairs, 2 * pairs)
    preferences, last, failed = annotate(served, files, *only_answers(served))
    assert (len(preferences), last["failed"], failed) == (pairs, 0, []), "another request is asked anew"


def test_a_model_that_the_server_has_not_is_one_line(served, files):
    with pytest.raises(Unfinished, match=r"answers 400: .*pinned to.*check judge\.base_url, judge\.model") as caught:
        annotate(served, files, "judge.model=another")
    assert "\n" not in str(caught.value)
