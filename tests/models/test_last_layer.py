"""The last layer for the pooled token alone: the states and gradients of the whole layer, for every family it knows."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import varlen as of_torch
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine import last_layer, varlen
from rankpo.models.engine.live_bytes import LiveBytes
from rankpo.models.engine.two_way import make_two_way
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import FAMILIES, backbone, sequences
from tests.models.test_varlen import stand_in

ENCODERS = ["bert", "roberta", "xlm-roberta", "electra"]
DECODERS = ["llama", "qwen2", "qwen3"]
LENGTHS = (9, 23, 2, 9, 1, 17)


def model(family: str, pooling: str, two_way: bool = False, **changes: object) -> EmbeddingModel:
    body = backbone(family, **changes)
    if two_way:
        make_two_way(body)
    settings = EmbeddingSettings(pooling=pooling, normalize=False, query_max_length=64, passage_max_length=64)
    return EmbeddingModel(body, EmbeddingInputs(byte_tokenizer(), settings))


def vectors_and_gradients(made: EmbeddingModel, given, short: bool):
    made.short_last = short
    made.zero_grad()
    vectors = made(given)
    (vectors * torch.arange(vectors.numel()).reshape(vectors.shape).cos()).sum().backward()
    return vectors, {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}


def assert_short_is_whole(made: EmbeddingModel, given) -> None:
    assert made.short_last
    whole, expected = vectors_and_gradients(made, given, short=False)
    short, found = vectors_and_gradients(made, given, short=True)
    assert_close(short, whole, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("pooling", ["cls", "last"])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family, pooling):
    assert_short_is_whole(model(family, pooling), sequences(LENGTHS))


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family):
    assert_short_is_whole(model(family, "last"), sequences(LENGTHS))


def test_mistral_without_a_window():
    assert_short_is_whole(model("mistral", "last", sliding_window=None), sequences(LENGTHS))


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_a_decoder_that_attends_both_ways(pooling):
    assert_short_is_whole(model("llama", pooling, two_way=True), sequences(LENGTHS))


@pytest.mark.parametrize(("family", "pooling"), [("bert", "cls"), ("bert", "last"), ("llama", "last")])
def test_tokens_that_no_token_attends_to(family, pooling):
    given = replace(sequences(LENGTHS), attended=torch.tensor([4, 23, 1, 9, 1, 5]))
    assert_short_is_whole(model(family, pooling), given)


def test_a_prompt_that_is_not_pooled():
    prefixes = torch.tensor([[0, 3], [1, 22], [0, 2], [0, 0], [0, 5], [1, 1]])  # The third and fifth are prompts alone.
    assert_short_is_whole(model("bert", "cls"), replace(sequences(LENGTHS), prefixes=prefixes))


@pytest.mark.parametrize("other", sorted(set(FAMILIES) - {*ENCODERS, *DECODERS}))
def test_other_families_compute_all_tokens(other):
    made = model(other, "last")
    assert not made.short_last
    assert made.encode(["a", "some text"]).shape == (2, made.dim)


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "mean"), ("bert", "cls+mean"), ("llama", "cls"), ("bert", "max")]
)
def test_poolings_that_read_more(family, pooling):
    assert not model(family, pooling).short_last


def test_a_layer_that_computes_something_else_is_found_out(monkeypatch):
    monkeypatch.setitem(last_layer.FORMS, "BertLayer", lambda layer, hidden, token, **_: hidden[:, token.places])
    made = model("bert", "cls")
    assert not made.short_last
    assert "forward" not in vars(made.base.encoder.layer[-1])


def test_layers_that_are_read_beside_the_last_one():
    body = backbone("bert")
    settings = EmbeddingSettings(pooling="cls", prior_layers=(1,), query_max_length=64, passage_max_length=64)
    made = EmbeddingModel(body, EmbeddingInputs(byte_tokenizer(), settings))
    whole = made.encode(["a text", "another"])
    made.short_last = False
    assert_close(made.encode(["a text", "another"]), whole)


def test_the_variable_length_kernel_takes_one_query_of_each_sequence(monkeypatch):
    calls = []

    def called(*arguments, **named):
        calls.append(arguments[3].tolist())
        return stand_in(*arguments, **named)

    made = model("llama", "last")
    made.short_last = False
    whole = made(sequences(LENGTHS))
    monkeypatch.setattr(of_torch, "varlen_attn", called)
    monkeypatch.setattr(varlen, "fits", lambda query, dropout: True)
    made.short_last = True
    assert_close(made(sequences(LENGTHS)), whole, atol=1e-5, rtol=1e-5)
    assert calls[-1] == list(range(len(LENGTHS) + 1)) and calls[0] != calls[-1]


def test_the_pass_holds_less_memory():
    made = model("llama", "last")
    peaks = {}
    for short in (False, True):
        made.short_last = short
        with LiveBytes([*made.parameters()]) as counter:
            made(sequences((60, 60, 60)))
        peaks[short] = counter.peak
    assert peaks[True] < 0.8 * peaks[False]
