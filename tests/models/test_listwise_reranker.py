"""Ranking with a listwise model: windows and waves, decode modes, what is reported, requests and tables."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rankpo.data.batch import join
from rankpo.data.generated.toy_lists import ToyLists
from rankpo.data.readers.requests import Request
from rankpo.data.table import open_table
from rankpo.data.text.prompt_templates import read_template
from rankpo.evaluation.metrics import evaluate_run
from rankpo.models.attention import plain_attention
from rankpo.models.listwise import decoding
from rankpo.models.listwise.inputs import ListwiseInputs
from rankpo.models.listwise.model import ListwiseModel
from rankpo.models.listwise.reranking import ListwiseReranker, slot_scores
from rankpo.models.listwise.settings import ListwiseSettings
from rankpo.models.random_weights import random_backbone
from tests.models.test_listwise import LISTS, model_of, prompts_of
from tests.toy_tokenizers import byte_bpe


@pytest.fixture(scope="module")
def model():
    return model_of()


class Oracle:
    """Makes a model put the passages with the largest number first, whatever its weights are."""

    def __init__(self, model, passages):
        self.numbers = [float(text) for text in passages]
        self.model, self.calls, self.sizes = model, 0, []
        model.inputs.prompt = self.prompt
        model.forward = self.forward

    def prompt(self, query, passages, name=""):
        self.waiting = getattr(self, "waiting", [])
        texts = [self.model.tokenizer.decode(ids).strip() for ids in passages]
        self.waiting.append([float(text) for text in texts])
        return np.arange(3, 4)  # one token: nothing to share

    def forward(self, sequences):
        self.calls += 1
        rows, self.waiting = self.waiting[: len(sequences)], self.waiting[len(sequences) :]
        self.sizes.append([len(row) for row in rows])
        logits = torch.full((len(rows), 10), -1e9)
        for number, row in enumerate(rows):
            logits[number, : len(row)] = torch.tensor(row)
        return type("Output", (), {"logits": logits, "answer_logps": None})()


def test_windows_carry_the_best_to_the_top_in_waves():
    """Two queries of 25 and 8 documents: three waves for the longer one, the shorter joins the first of them."""
    model = model_of()
    documents = [[str(number) for number in range(25)], [str(number) for number in range(8)]]
    oracle = Oracle(model, documents[0])
    reranker = ListwiseReranker(model, window=10, stride=5)
    first, second = reranker.rank_many([("q", documents[0]), ("p", documents[1])])
    assert [(record.start, record.end) for record in first.windows] == [(15, 25), (10, 20), (5, 15), (0, 10)]
    assert first.order[:5] == (24, 23, 22, 21, 20)
    assert second.order == (7, 6, 5, 4, 3, 2, 1, 0)
    assert oracle.sizes[0] == [10, 8] and oracle.calls == 4
    assert list(first.scores) == list(range(25, 0, -1))  # logits of several windows cannot be compared
    assert list(second.scores) == [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_passes_stop_when_nothing_changes_and_top_k_leaves_the_rest():
    model = model_of()
    documents = [str(number) for number in range(12)]
    oracle = Oracle(model, documents)
    (ranked,) = ListwiseReranker(model, window=6, stride=3, passes=9, top_k=9).rank_many([("q", documents)])
    assert ranked.order == (8, 7, 6, 5, 4, 3, 2, 1, 0, 9, 10, 11)
    passes = {record.number for record in ranked.windows}
    assert len(passes) < 9 and oracle.calls == len(ranked.windows)
    assert ranked.by_document().tolist()[8] == 12.0


def test_one_window_is_one_call_and_nothing_is_generated(model, monkeypatch):
    """Defect 38: first_token reads logits; were they not used, the order would stay."""
    calls = []
    monkeypatch.setattr(decoding, "write", lambda *arguments: pytest.fail("generate was called"))
    monkeypatch.setattr(model, "forward", lambda sequences, own=model.forward: calls.append(1) or own(sequences))
    ranked = [tuple(item.values()) for item in model.rank("q", ["one", "two", "three"], return_documents=True)]
    assert len(calls) == 1
    logits = model(join(prompts_of(model, ("q", ["one", "two", "three"])))).logits[0, :3].tolist()
    assert [index for index, _, _ in ranked] == sorted(range(3), key=lambda index: -logits[index])
    assert [score for _, score, _ in ranked] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)


def test_rank_speaks_of_the_input_list(model):
    """Defect 35: empty, one, repeated and empty-text documents, indices of the input, ties in its order."""
    assert model.rank("q", []) == []
    assert [item["corpus_id"] for item in model.rank("q", ["only"])] == [0]
    ranked = [tuple(item.values()) for item in model.rank("q", ["same", "", "same", "x"], return_documents=True)]
    assert sorted(index for index, _, _ in ranked) == [0, 1, 2, 3]
    assert all(["same", "", "same", "x"][index] == text for index, _, text in ranked)
    assert len(model.rank("q", ["a", "b", "c"], top_k=2)) == 2
    with pytest.raises(TypeError, match="documents must be a list of strings, got one string"):
        model.rank("q", "text")
    with pytest.raises(ValueError, match=r"requests\[0\]: the query is empty"):
        model.rank(" ", ["a", "b"])
    with pytest.raises(TypeError, match=r"requests\[0\]: documents\[1\] must be a text, got int"):
        model.rank("q", ["a", 3])


def test_an_error_in_the_second_window_reaches_the_caller():
    """Defect 37; with keep the window is marked, the others go on."""
    model = model_of()
    documents = [str(number) for number in range(20)]
    oracle = Oracle(model, documents)
    forward = oracle.forward

    def broken(sequences):
        if 5.0 in oracle.waiting[0] and 14.0 not in oracle.waiting[0]:
            raise RuntimeError("device lost")
        return forward(sequences)

    model.forward = broken
    with pytest.raises(RuntimeError, match="device lost"):
        ListwiseReranker(model, window=10, stride=5).rank_many([("q", documents)])
    oracle.waiting = []
    (ranked,) = ListwiseReranker(model, window=10, stride=5, on_window_error="keep").rank_many([("q", documents)])
    statuses = [record.permutation.status for record in ranked.windows]
    assert statuses.count("failed") == ranked.failed >= 1 and "ok" in statuses
    assert "device lost" in next(r.permutation.reason for r in ranked.windows if r.permutation.status == "failed")
    assert sorted(ranked.order) == list(range(20))


def test_a_window_that_fails_leaves_those_beside_it():
    """Two queries in one wave, and one of them cannot be run: the other is ranked, and knows nothing of it."""
    model = model_of()
    oracle = Oracle(model, [])
    forward = oracle.forward

    def broken(sequences):
        if any(9.0 in row for row in oracle.waiting[: len(sequences)]):
            del oracle.waiting[: len(sequences) if len(sequences) == 1 else 0]
            raise RuntimeError("too long")
        return forward(sequences)

    model.forward = broken
    lists = [("q", ["1", "2", "3"]), ("p", ["9", "4"]), ("r", ["5", "6"])]
    ranked = ListwiseReranker(model, on_window_error="keep").rank_many(lists)
    assert [each.order for each in ranked] == [(2, 1, 0), (0, 1), (1, 0)]
    assert [each.failed for each in ranked] == [0, 1, 0]


def test_logits_that_are_no_numbers_are_an_error():
    model = model_of()
    model.inputs.prompt = lambda query, passages, name="": np.arange(3, 4)
    logits = torch.tensor([[1.0, float("nan"), 2.0] + [0.0] * 7])
    model.forward = lambda sequences: type("Output", (), {"logits": logits, "answer_logps": None})()
    with pytest.raises(RuntimeError, match="an identifier's logit is not a number"):
        model.rank("q", ["a", "b", "c"])


def test_a_written_answer_begins_with_what_the_prompt_has_of_it(monkeypatch):
    """The prompt ends in the bracket of the first identifier: B] > [A] > [C] is read as [B] > [A] > [C]."""
    model = model_of("model.prompt=letters", "model.decode=generate", "model.max_length=2048")
    own = model.inputs.layout.identifiers
    assert model.tokenizer.decode(own.prefix) == "["
    monkeypatch.setattr(decoding, "write", lambda model, prompts, budget: [own.answer([1, 0, 2])])
    (ranked,) = ListwiseReranker(model).rank_many([("q", ["a", "b", "c"])])
    assert (ranked.order, ranked.windows[0].permutation.status) == ((1, 0, 2), "ok")
    assert ranked.windows[0].response == "[B] > [A] > [C]"


def merged_model(model_type="llama"):
    """A model whose tokenizer merges '[A' at the first place and writes ' [' + 'A' at the others."""
    tokenizer = byte_bpe("Ġ[", *(f"[{letter}" for letter in "ABCDEFGHIJ"))
    template = {**read_template("letters").to_json(), "instruction": "Rank:\n", "system": None}
    settings = ListwiseSettings(template=template, window=10, stride=5, max_length=512, min_passage_tokens=1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    if model_type == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4}
    random = {"model_type": model_type, **sizes, "vocab_size": len(tokenizer), "initializer_range": 0.3}
    torch.manual_seed(0)
    backbone = random_backbone(random, family=AutoModelForCausalLM)
    return ListwiseModel(backbone, ListwiseInputs(tokenizer, settings)).eval()


@pytest.mark.parametrize("merged", [False, True])
def test_constrained_is_always_a_permutation_and_greedy(model, merged):
    """Against a loop that runs the plain model anew for each place."""
    model = merged_model() if merged else model
    assert (model.inputs.layout.identifiers.first != model.inputs.layout.identifiers.later) == merged
    prompts = prompts_of(model, *LISTS)
    found = decoding.constrained(model, prompts, [3, 2, 10])
    own = model.inputs.layout.identifiers
    with plain_attention(model.base, model.packed) as base, torch.no_grad():
        for prompt, order in zip(prompts, found, strict=True):
            assert sorted(order) == list(range(len(order)))
            ids = prompt.tolist()
            for place in range(len(order)):
                left = [item for item in range(len(order)) if item not in order[:place]]
                known = own.first if place == 0 else own.later
                logits = base(input_ids=torch.tensor([ids])).logits[0, -1]
                assert max(left, key=lambda item: float(logits[known[item]])) == order[place]
                ids += [known[order[place]], *own.between]


def test_absolute_positions_begin_behind_the_padding():
    """GPT-2's, unlike rotations, are another model's where they count the padding too."""
    model = merged_model("gpt2")
    prompts = prompts_of(model, *LISTS)
    together = decoding.constrained(model, prompts, [3, 2, 10])
    assert together == [
        decoding.constrained(model, [prompt], [count])[0] for prompt, count in zip(prompts, (3, 2, 10), strict=True)
    ]


def test_written_answers_are_those_of_each_prompt_alone(model):
    prompts = prompts_of(model, *LISTS)
    together = decoding.write(model, prompts, 6)
    assert together == [decoding.write(model, [prompt], 6)[0] for prompt in prompts]


def test_an_untrained_models_answers_are_counted(model):
    ranked = ListwiseReranker(model, decode="generate").rank_many([("q", ["a", "b", "c"])] * 3)
    for each in ranked:
        (record,) = each.windows
        assert record.response is not None and sorted(each.order) == [0, 1, 2]
        assert each.failed == (record.permutation.status == "failed")


def test_first_token_is_three_times_faster_for_a_hundred_passages(model):
    """One pass over the prompt against one for each token of an answer."""
    documents = [f"{number} some words" for number in range(100)]
    seconds = {}
    for decode in ("first_token", "generate"):
        reranker = ListwiseReranker(model, decode=decode)
        reranker.rank("q", documents[:10])
        started = time.perf_counter()
        reranker.rank("q", documents)
        seconds[decode] = time.perf_counter() - started
    assert seconds["generate"] > 3 * seconds["first_token"]


def test_requests_and_tables_get_the_same_scores(model, tmp_path):
    data = ToyLists(name="t", num_examples=5, num_passages=6)
    table = open_table(tmp_path, [data], model.inputs.pieces(), lambda message: None)
    by_slot = slot_scores(model, table)
    requests = [
        Request(e.id, e.query, tuple(map(str, range(6))), e.candidates, tuple([0.0] * 6)) for e in data.examples()
    ]
    assert_close(np.concatenate(model.rerank(requests)), by_slot, atol=1e-5, rtol=0)
    run = {
        r.id: dict(zip(r.document_ids, map(float, s), strict=True))
        for r, s in zip(requests, model.rerank(requests), strict=True)
    }
    qrels = {e.id: {str(n): int(v * 9) for n, v in enumerate(e.relevance)} for e in data.examples()}
    assert 0 < evaluate_run(run, qrels, ["ndcg@10"]).metrics["ndcg@10"] <= 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decode": "beam"}, "decode must be one of first_token, generate, constrained, got 'beam'"),
        ({"window": 11}, "window must be in 2 to 10, the number of identifiers, got 11"),
        ({"window": 4, "stride": 5}, "stride must be in 1 to window=4, got 5"),
        ({"on_window_error": "hide"}, "on_window_error must be raise or keep, got 'hide'"),
    ],
)
def test_errors_of_the_reranker(model, keys, message):
    with pytest.raises(ValueError, match=message):
        ListwiseReranker(model, **keys)
