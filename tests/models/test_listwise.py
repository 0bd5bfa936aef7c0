"""Listwise models: logits and answers against transformers, NEFTune, learning a rule, ranking by every decode mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.config.compose import compose
from rankpo.data.batch import join
from rankpo.data.generated.toy_lists import ToyLists
from rankpo.models.attention import plain_attention
from rankpo.models.listwise import decoding
from rankpo.models.listwise.inputs import PASSAGE, QUERY
from rankpo.models.listwise.reranking import ListwiseReranker
from rankpo.types import Sequences
from tests.models.saved import saved
from tests.runs import trainer_of
from tests.thinning import thinned

# prompts of little more than their passages
BARE = (
    "model.chat_template=\"{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}=\""
)
TINY = ("model=tiny_llama_wide", "kind=listwise", BARE)
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
    config = compose([*TINY, "loss=softmax", *overrides]).model
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
    with plain_attention(model.base, model.packed) as base:
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
    with plain_attention(model.base, model.packed) as base:
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
    common = decoding.common_prefix(prompts)
    assert common == len(" ".join(query.split()) + "\nA")
    read = []
    handle = model.base.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: read.append(arguments[0].numel())
    )
    with torch.inference_mode():
        shared = decoding.first_logits(model, prompts)
        handle.remove()
        alone = torch.cat([model(join([prompt])).logits for prompt in prompts])
    assert sum(read) < 0.5 * sum(map(len, prompts))
    assert_close(shared, alone, atol=1e-4, rtol=0)


def test_prompts_that_differ_early_are_packed(model, monkeypatch):
    calls = []
    monkeypatch.setattr(model, "forward", lambda sequences, own=model.forward: calls.append(1) or own(sequences))
    with torch.inference_mode():
        decoding.first_logits(model, prompts_of(model, *LISTS))
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


@pytest.fixture(scope="module", params=thinned(["generation", "ranking", "combined"], keep=["combined"]))
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
    assert saved(trainer.policy, tmp_path / "FINAL", {"exp_name": "x"}) < 1e-5
    loaded = rankpo.load(tmp_path / "FINAL", device="cpu")
    assert loaded.settings == trainer.policy.settings
    query, documents = "largest", ["3", "8", "1"]
    assert loaded.rank(query, documents) == trainer.policy.rank(query, documents)


def test_a_context_larger_than_the_positions_is_refused():
    """Defect 21."""
    with pytest.raises(Exception, match=r"model.max_length=4096, but the model has 2048 positions"):
        model_of("model.max_length=4096")
