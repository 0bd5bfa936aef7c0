"""oneDNN's products in encoding: the vectors of torch's own products, and no effect where they do not apply."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine import cpu_products
from rankpo.models.engine.cpu_products import fast_products, onednn_is_faster
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import backbone

TEXTS = [f"text number {number} " * (1 + number % 5) for number in range(12)]


@pytest.fixture
def calls(monkeypatch):
    """Uses oneDNN whatever the processor. Returns the activations of its calls."""
    found = []
    own = cpu_products._Product.of

    def counted(product, states, activation):
        found.append(activation)
        return own(product, states, activation)

    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_products._Product, "of", counted)
    return found


def model(family: str = "bert") -> EmbeddingModel:
    settings = EmbeddingSettings(pooling="mean", query_max_length=64, passage_max_length=64)
    return EmbeddingModel(backbone(family), EmbeddingInputs(byte_tokenizer(), settings))


@pytest.mark.parametrize("packed_from", [1, 1 << 30], ids=["packed", "plain"])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert", "modernbert", "llama", "gpt2"])
def test_encoding_gives_the_same_vectors(family, packed_from, calls, monkeypatch):
    monkeypatch.setattr(cpu_products, "PACKED_TOKENS", packed_from)
    made = model(family)
    found = made.encode(TEXTS)
    assert calls or family == "gpt2"  # GPT-2's layers are not nn.Linear.
    assert ("gelu" in calls) == (family in ("bert", "xlm-roberta"))
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: False)
    assert_close(found, made.encode(TEXTS), atol=2e-6, rtol=1e-5)
    assert not any("forward" in vars(module) for module in made.modules())


def test_passes_with_gradient_autocast_or_few_rows_compute_as_before(calls):
    made = model()
    sequences = made.inputs.sequences_of(TEXTS, "candidate")
    with fast_products(made, 10_000):
        made(sequences).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            made(sequences)
        with torch.no_grad():
            made(made.inputs.sequences_of(["short"], "candidate"))
    assert calls == []
    assert all(weight.grad is not None for weight in made.base.encoder.parameters())


def test_layers_that_are_left_alone(calls):
    hooked, half, own = nn.Linear(8, 8), nn.Linear(8, 8).bfloat16(), nn.LazyLinear(8)
    hooked.register_forward_pre_hook(lambda module, given: None)
    module = nn.ModuleList([hooked, half, own])
    with fast_products(module, 10_000):
        assert not any("forward" in vars(layer) for layer in module)


def test_only_amd_processors(tmp_path):
    for vendor, faster in (("AuthenticAMD", torch.backends.mkldnn.is_available()), ("GenuineIntel", False)):
        path = tmp_path / vendor
        path.write_text(f"vendor_id\t: {vendor}\n")
        assert onednn_is_faster(path) == faster
    assert not onednn_is_faster(tmp_path / "missing")


def test_an_operator_that_has_changed_is_not_used(monkeypatch):
    monkeypatch.setattr(cpu_products._Product, "of", lambda product, states, activation: product.layer(states) + 1)
    state = torch.get_rng_state()
    assert not cpu_products._proved()
    assert_close(torch.get_rng_state(), state)


def test_the_trial_is_the_same_under_autocast():
    alone = cpu_products._proved()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cpu_products._proved() == alone


@pytest.mark.parametrize(("tokens", "most", "packed"), [(8191, 10_000, False), (8192, 10_000, True), (8192, 10, False)])
def test_weights_are_copied_for_many_tokens_of_small_models(tokens, most, packed, calls, monkeypatch):
    monkeypatch.setattr(cpu_products, "PACKED_BYTES", most)
    layer = nn.Linear(8, 8)
    with fast_products(layer, tokens):
        (product,) = vars(layer)["forward"].args
    assert product.weight.is_mkldnn == packed
