"""Listwise models: logits and answers against transformers, NEFTune, learning a rule, ranking by every decode mode."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import rankpo
from rankpo.data.collate import join
from rankpo.data.listwise_inputs import PASSAGE, QUERY, ListwiseInputs
from rankpo.data.listwise_prompts import read_template
from rankpo.data.requests import Request
from rankpo.data.toy_lists import ToyLists
from rankpo.demo import compose
from rankpo.models import listwise_decoding
from rankpo.models.listwise import ListwiseModel
from rankpo.models.listwise_reranker import ListwiseReranker, slot_scores
from rankpo.models.listwise_settings import ListwiseSettings
from rankpo.models.loading import random_backbone
from rankpo.ranking_metrics import evaluate_run
from rankpo.types import Sequences
from tests.runs import trainer_of
from tests.toy_tokenizers import byte_bpe

# prompts of little more than their passages
BARE = (
    "model.chat_template=\"{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}=\""
)
TINY = ("model=tiny_listwise", BARE)
TRAINED = (
    *TINY,
    "datasets=[toy_lists]",
    "datasets.toy_lists.num_passages=3",
    "dataloader.variable_size=0",
    "dataloader.shuffle_candidates=1",
    "trainer.batch_size=32",
    "trainer.max_steps=110",
    "trainer.eval_at_start=false",
    "optimizer=adamw",
    "optimizer.lr=0.003",
    "scheduler=constant",
    "scheduler.warmup=0",
)


def model_of(*overrides):
    torch.manual_seed(0)
    config = compose([*TINY, *overrides]).model
    return config.build(config.open_inputs(lambda message: None), lambda message: None).eval()


def prompts_of(model, *lists):
    prompts = []
    for query, passages in lists:
        ids = [
            np.asarray(row) for row in model.inputs.tokenize([QUERY + query, *(PASSAGE + text for text in passages)])
        ]
        prompts.append(model.inputs.prompt(ids[0], ids[1:]))
    return prompts


@pytest.fixture(scope="module")
def model():
    return model_of()


LISTS = [("q", ["one", "two", "three"]), ("another", ["a", "bb"]), ("third", list("abcdefghij"))]


def test_identifier_logits_are_those_of_transformers(model):
    """Alone, each prompt by the plain model: the row of the last position, the columns of the identifiers."""
    prompts = prompts_of(model, *LISTS)
    logits = model(join(prompts)).logits
    assert logits.dtype == torch.float32 and logits.shape == (3, 10)
    ids = list(model.inputs.layout.identifiers.first)
    with listwise_decoding.own_attention(model) as base:
        for row, prompt in enumerate(prompts):
            plain = base(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
            assert_close(logits[row], plain[ids], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_answers_and_logits_in_one_forward_pass(layout):
    """Summed log-probabilities of the answer's tokens, against the plain model's whole logits."""
    model = model_of(f"model.layout={layout}")
    prompts = prompts_of(model, *LISTS)
    answers = [model.inputs.answer(np.array(r)) for r in ([0.0, 2.0, 1.0], [1.0, 2.0], list(range(10)))]
    whole = join([np.concatenate(pair) for pair in zip(prompts, answers, strict=True)])
    labels = np.concatenate(
        [part for prompt, ids in zip(prompts, answers, strict=True) for part in (np.full(len(prompt), -100), ids)]
    )
    output = model(Sequences(whole.input_ids, whole.lengths, torch.from_numpy(labels)))
    assert_close(output.logits, model(join(prompts)).logits, atol=1e-5, rtol=0)
    with listwise_decoding.own_attention(model) as base:
        for row, (prompt, ids) in enumerate(zip(prompts, answers, strict=True)):
            text = torch.from_numpy(np.concatenate([prompt, ids]))
            logps = base(input_ids=text[None]).logits[0].log_softmax(-1)
            wanted = sum(logps[len(prompt) - 1 + n, token] for n, token in enumerate(ids))
            assert_close(output.answer_logps[row], wanted, atol=1e-4, rtol=0)


def test_alone_and_in_a_wave(model):
    prompts = prompts_of(model, *LISTS)
    together = model(join(prompts)).logits
    alone = torch.cat([model(join([prompt])).logits for prompt in prompts])
    assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_shared_beginning_is_read_once_with_equal_logits(layout):
    """A long query before short passages: read once for the wave, and every logit is that of the prompt alone."""
    model = model_of(f"model.layout={layout}", "model.max_query_tokens=400")
    query = "a question that is much longer than the passages " * 5
    prompts = prompts_of(model, (query, ["one", "two"]), (query, ["three", "4"]), (query, ["a", "b", "c"]))
    common = listwise_decoding.common_prefix(prompts)
    assert common == len(" ".join(query.split()) + "\nA")
    read = []
    handle = model.base.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: read.append(arguments[0].numel())
    )
    with torch.inference_mode():
        shared = listwise_decoding.first_logits(model, prompts)
        handle.remove()
        alone = torch.cat([model(join([prompt])).logits for prompt in prompts])
    assert sum(read) < 0.5 * sum(map(len, prompts))
    assert_close(shared, alone, atol=1e-4, rtol=0)


def test_prompts_that_differ_early_are_packed(model, monkeypatch):
    calls = []
    monkeypatch.setattr(model, "forward", lambda sequences, own=model.forward: calls.append(1) or own(sequences))
    with torch.inference_mode():
        listwise_decoding.first_logits(model, prompts_of(model, *LISTS))
    assert calls == [1]


# NEFTune


def noise_of(model, *prompts):
    """What training adds to the embeddings of each prompt."""
    seen = []
    handle = model.base.base_model.layers[0].register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(arguments[0] if arguments else keywords["hidden_states"]),
        with_kwargs=True,
    )
    model.train()
    model(join(prompts))
    model.eval()
    model(join(prompts))
    handle.remove()
    noisy, clean = seen
    difference = (noisy - clean).detach()
    lengths = sorted((len(prompt) for prompt in prompts), reverse=True)
    if model.packed:
        return difference[0].split(lengths)
    assert all((row[length:] == 0).all() for row, length in zip(difference, lengths, strict=True))
    return [row[:length] for row, length in zip(difference, lengths, strict=True)]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_neftune_scales_by_each_sequences_own_length(layout):
    """Defect 43: m = α/√(T·d), nothing on padding, and the noise of a list does not depend on its neighbours."""
    model = model_of("model.neftune_alpha=5", f"model.layout={layout}")
    model.noise_key = (1, 2)
    short, long = prompts_of(model, LISTS[1], LISTS[2])
    of_long, of_short = noise_of(model, short, long)
    for noise, prompt in ((of_long, long), (of_short, short)):
        magnitude = 5 / math.sqrt(len(prompt) * 64)
        assert 0.97 * magnitude < noise.abs().max() <= magnitude * 1.0001
        assert noise.square().sum() == pytest.approx(25 / 3, rel=0.12)
    (alone,) = noise_of(model, short)
    assert_close(alone, of_short, atol=1e-6, rtol=0)
    model.noise_key = (1, 3)
    assert (noise_of(model, short)[0] != alone).any()


def test_no_noise_without_alpha_and_none_in_inference():
    plain, noisy = model_of(), model_of("model.neftune_alpha=5")
    (prompt,) = prompts_of(plain, LISTS[0])
    assert_close(noisy(join([prompt])).logits, plain(join([prompt])).logits)
    assert (noise_of(plain, prompt)[0] == 0).all()
    ranked = [ListwiseReranker(each.train()).rank(*LISTS[0]) for each in (plain, noisy)]
    assert ranked[0] == ranked[1] and plain.training


# learning


@pytest.fixture(scope="module", params=["generation", "ranking", "combined"])
def trained(request):
    trainer = trainer_of(*TRAINED, f"loss=listwise_{request.param}")
    for step in range(trainer.total_steps):
        trainer.train_step(trainer.prepare(step))
    trainer.policy.eval()
    return request.param, trainer


def held_out(count=60):
    seen = {example.candidates for example in ToyLists(name="x", num_passages=3).examples()}
    examples = ToyLists(name="x", part="test", num_passages=3, num_examples=200).examples()
    return [example for example in examples if example.candidates not in seen][:count]


def top1(ranked, examples):
    pairs = zip(ranked, examples, strict=True)
    return np.mean([example.relevance[each.order[0]] == max(example.relevance) for each, example in pairs])


def test_a_rule_is_learned_for_lists_never_seen(trained):
    """Chance is 1/3 for the best of three; each objective by the decode mode that it trains."""
    objective, trainer = trained
    examples = held_out()
    requests = [(example.query, example.candidates) for example in examples]
    modes = {"generation": ("generate", "constrained"), "ranking": ("first_token",)}
    for decode in modes.get(objective, ("first_token", "generate", "constrained")):
        ranked = ListwiseReranker(trainer.policy, decode=decode).rank_many(requests)
        assert top1(ranked, examples) > 0.8
        assert np.mean([each.failed for each in ranked]) < 0.05
        assert all(each.decode == decode for each in ranked)


def test_first_token_agrees_with_generation(trained):
    objective, trainer = trained
    if objective != "combined":
        pytest.skip("the combined objective trains both")
    requests = [(example.query, example.candidates) for example in held_out()]
    by_logits = ListwiseReranker(trainer.policy, decode="first_token").rank_many(requests)
    written = ListwiseReranker(trainer.policy, decode="generate").rank_many(requests)
    assert np.mean([a.order[0] == b.order[0] for a, b in zip(by_logits, written, strict=True)]) > 0.9
    assert np.mean([a.order == b.order for a, b in zip(by_logits, written, strict=True)]) > 0.7


def test_the_two_terms_are_logged_apart(trained):
    """Defect 10: RankLLM adds in place, so both show the same number."""
    objective, trainer = trained
    metrics = trainer.running.result(lambda tensor: tensor)
    terms = {name for name in metrics if name.startswith("loss/")}
    assert terms == ({"loss/generation", "loss/ranking"} if objective == "combined" else set())
    if terms:
        value = metrics["loss/generation"] + 10 * metrics["loss/ranking"]
        assert metrics["loss/generation"] != metrics["loss/ranking"]
        assert metrics["loss"] == pytest.approx(value, rel=0.05)  # token mean against a mean over lists of one size


def test_a_saved_model_ranks_alike(trained, tmp_path):
    """Defect 34: the folder alone is enough."""
    _, trainer = trained
    assert trainer.policy.export(tmp_path / "FINAL", {"exp_name": "x"}) < 1e-5
    loaded = rankpo.load(tmp_path / "FINAL", device="cpu")
    assert loaded.settings == trainer.policy.settings
    query, documents = "largest", ["3", "8", "1"]
    assert loaded.rank(query, documents) == trainer.policy.rank(query, documents)


# the reranker around the model


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
    monkeypatch.setattr(listwise_decoding, "write", lambda *arguments: pytest.fail("generate was called"))
    monkeypatch.setattr(model, "forward", lambda sequences, own=model.forward: calls.append(1) or own(sequences))
    ranked = model.rank("q", ["one", "two", "three"])
    assert len(calls) == 1
    logits = model(join(prompts_of(model, ("q", ["one", "two", "three"])))).logits[0, :3].tolist()
    assert [index for index, _, _ in ranked] == sorted(range(3), key=lambda index: -logits[index])
    assert [score for _, score, _ in ranked] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)


def test_rank_speaks_of_the_input_list(model):
    """Defect 35: empty, one, repeated and empty-text documents, indices of the input, ties in its order."""
    assert model.rank("q", []) == []
    assert [index for index, _, _ in model.rank("q", ["only"])] == [0]
    ranked = model.rank("q", ["same", "", "same", "x"])
    assert sorted(index for index, _, _ in ranked) == [0, 1, 2, 3]
    assert all(["same", "", "same", "x"][index] == text for index, _, text in ranked)
    assert len(model.rank("q", ["a", "b", "c"], top_k=2)) == 2
    with pytest.raises(TypeError, match="documents must be a list of texts, got one text"):
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


def merged_model():
    """A model whose tokenizer merges '[A' at the first place and writes ' [' + 'A' at the others."""
    tokenizer = byte_bpe("Ġ[", *(f"[{letter}" for letter in "ABCDEFGHIJ"))
    template = {**read_template("letters").to_json(), "instruction": "Rank:\n", "system": None}
    settings = ListwiseSettings(template=template, window=10, stride=5, max_length=512, min_passage_tokens=1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    random = {"model_type": "llama", **sizes, "vocab_size": len(tokenizer), "initializer_range": 0.3}
    torch.manual_seed(0)
    backbone = random_backbone(random, family=AutoModelForCausalLM)
    return ListwiseModel(backbone, ListwiseInputs(tokenizer, settings)).eval()


@pytest.mark.parametrize("merged", [False, True])
def test_constrained_is_always_a_permutation_and_greedy(model, merged):
    """Against a loop that runs the plain model anew for each place."""
    model = merged_model() if merged else model
    assert (model.inputs.layout.identifiers.first != model.inputs.layout.identifiers.later) == merged
    prompts = prompts_of(model, *LISTS)
    found = listwise_decoding.constrained(model, prompts, [3, 2, 10])
    own = model.inputs.layout.identifiers
    with listwise_decoding.own_attention(model) as base, torch.no_grad():
        for prompt, order in zip(prompts, found, strict=True):
            assert sorted(order) == list(range(len(order)))
            ids = prompt.tolist()
            for place in range(len(order)):
                left = [item for item in range(len(order)) if item not in order[:place]]
                known = own.first if place == 0 else own.later
                logits = base(input_ids=torch.tensor([ids])).logits[0, -1]
                assert max(left, key=lambda item: float(logits[known[item]])) == order[place]
                ids += [known[order[place]], *own.between]


def test_written_answers_are_those_of_each_prompt_alone(model):
    prompts = prompts_of(model, *LISTS)
    together = listwise_decoding.write(model, prompts, 6)
    assert together == [listwise_decoding.write(model, [prompt], 6)[0] for prompt in prompts]


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
    from rankpo.data.text_store import open_table

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
        ({"window": 11}, "window must be in 2 to 10, for which identifiers are proved, got 11"),
        ({"window": 4, "stride": 5}, "stride must be in 1 to window=4, got 5"),
        ({"on_window_error": "hide"}, "on_window_error must be raise or keep, got 'hide'"),
    ],
)
def test_errors_of_the_reranker(model, keys, message):
    with pytest.raises(ValueError, match=message):
        ListwiseReranker(model, **keys)


def test_a_context_larger_than_the_positions_is_refused():
    """Defect 21."""
    with pytest.raises(Exception, match=r"model.max_length=4096, but the model has 2048 positions"):
        model_of("model.max_length=4096")
