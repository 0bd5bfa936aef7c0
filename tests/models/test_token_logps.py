"""The token engine against the whole-vocabulary formulas in float64, in value, gradient and memory."""

import ctypes

import psutil
import pytest
import torch
from torch import float32, float64
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rankpo.models.engine import token_logps as engine
from rankpo.models.engine.token_logps import (
    Head,
    ReferenceStates,
    TokenRequest,
    over_vocabulary,
    token_logps,
    token_values,
)

P, D, V = 7, 5, 11


def inputs(dtype=float64, bias=True):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=float64).to(dtype).requires_grad_()

    labels = torch.randint(V, (P,), generator=generator)
    return normal(P, D), normal(V, D), normal(V) if bias else None, labels


def naive_log_softmax(hidden, weight, bias, softcap=None, temperature=1.0):
    """[P, V] in float64, all at once."""
    logits = hidden.double() @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    return (logits / temperature).log_softmax(-1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three positions a block, so that seven make two whole blocks and a part."""
    monkeypatch.setitem(engine.BLOCK_ELEMENTS, "cpu", 3 * V + 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_gradients(bias, softcap, temperature):
    hidden, weight, offset, labels = inputs(bias=bias)
    upstream = torch.linspace(-1, 2, P, dtype=float64)
    ours = token_logps(hidden, labels, Head(weight, offset, softcap), temperature)
    expected = naive_log_softmax(hidden, weight, offset, softcap, temperature)[range(P), labels]
    assert_close(ours, expected, atol=1e-12, rtol=0)
    variables = [hidden, weight] + ([offset] if bias else [])
    got = torch.autograd.grad((ours * upstream).sum(), variables)
    assert_close(got, torch.autograd.grad((expected * upstream).sum(), variables), atol=1e-12, rtol=0)


def test_frozen_head_gives_gradient_to_hidden_states_alone():
    hidden, weight, bias, labels = inputs()
    head = Head(weight.detach(), bias.detach())
    (ours,) = torch.autograd.grad(token_logps(hidden, labels, head).sum(), [hidden])
    (expected,) = torch.autograd.grad(naive_log_softmax(hidden, weight, bias)[range(P), labels].sum(), [hidden])
    assert_close(ours, expected, atol=1e-12, rtol=0)


def forward_kl(reference, policy):
    return (reference.exp() * (reference - policy)).sum(-1)


def reverse_kl(reference, policy):
    return (policy.exp() * (policy - reference)).sum(-1)


def test_two_models_walked_together():
    """Two divergences, reference log-probabilities and entropy; the second model is a constant with a smaller width."""
    hidden, weight, bias, labels = inputs()
    other = torch.randn(P, 3, dtype=float64, requires_grad=True)
    other_head = Head(torch.randn(V, 3, dtype=float64, requires_grad=True))
    request = TokenRequest(
        reference=ReferenceStates(other, other_head),
        divergences={"forward": forward_kl, "reverse": reverse_kl},
        entropy=True,
        hidden=True,
    )
    values = token_values(hidden, labels, Head(weight, bias), request)
    policy = naive_log_softmax(hidden, weight, bias)
    reference = naive_log_softmax(other, other_head.weight, None).detach()
    assert_close(values.logps, policy[range(P), labels], atol=1e-12, rtol=0)
    assert_close(values.reference_logps, reference[range(P), labels], atol=1e-12, rtol=0)
    assert not values.reference_logps.requires_grad and not values.entropy.requires_grad
    assert_close(values.divergences["forward"], forward_kl(reference, policy), atol=1e-12, rtol=0)
    assert_close(values.divergences["reverse"], reverse_kl(reference, policy), atol=1e-12, rtol=0)
    assert_close(values.entropy, -(policy.exp() * policy).sum(-1), atol=1e-12, rtol=0)
    assert values.hidden is hidden

    def objective(logps, forward, reverse):
        return (logps - 2 * forward + reverse.square()).sum()

    ours = objective(values.logps, values.divergences["forward"], values.divergences["reverse"])
    expected = objective(policy[range(P), labels], forward_kl(reference, policy), reverse_kl(reference, policy))
    variables = [hidden, weight, bias]
    got = torch.autograd.grad(ours, variables, retain_graph=True)
    assert_close(got, torch.autograd.grad(expected, variables, retain_graph=True), atol=1e-11, rtol=0)
    assert torch.autograd.grad(ours, [other, other_head.weight], allow_unused=True) == (None, None)


def test_equal_models_diverge_by_exactly_nothing():
    hidden, weight, bias, labels = inputs(float32)
    head = Head(weight, bias)
    request = TokenRequest(reference=ReferenceStates(hidden.detach(), head), divergences={"kl": forward_kl})
    values = token_values(hidden, labels, head, request)
    assert torch.equal(values.divergences["kl"], torch.zeros(P))
    assert torch.equal(values.logps, values.reference_logps)
    (gradient,) = torch.autograd.grad(values.divergences["kl"].sum(), [hidden])
    assert_close(gradient, torch.zeros(P, D), atol=1e-6, rtol=0)  # π - p, rounded


def test_half_precision_inputs_are_not_rounded_again():
    """Logits of bfloat16 numbers need more than 8 bits: rounded, log-probabilities would be 1e-2 off."""
    hidden, weight, bias, labels = inputs(torch.bfloat16)
    ours = token_logps(hidden, labels, Head(weight, bias))
    assert ours.dtype == float32
    assert_close(ours.double(), naive_log_softmax(hidden, weight, bias)[range(P), labels], atol=2e-6, rtol=0)
    gradients = torch.autograd.grad(ours.sum(), [hidden, weight, bias])
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3


def test_autocast_does_not_reach_the_logits():
    hidden, weight, bias, labels = inputs(float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = token_logps(hidden, labels, Head(weight, bias))
        ours.sum().backward()
    assert_close(ours.double(), naive_log_softmax(hidden, weight, bias)[range(P), labels], atol=2e-6, rtol=0)


def test_no_position_at_all():
    hidden, weight, bias, labels = inputs()
    values = token_logps(hidden[:0], labels[:0], Head(weight, bias))
    assert values.shape == (0,)
    (gradient,) = torch.autograd.grad(values.sum(), [weight])
    assert_close(gradient, torch.zeros_like(weight))


def test_any_reduction_of_the_logits():
    """Two values per position from one walk, with a constant beside them."""
    hidden, weight, *_ = inputs(bias=False)
    scale = torch.arange(1.0, P + 1, dtype=float64)
    largest, scaled = over_vocabulary(lambda x, s: (x.max(-1).values, x.sum(-1) * s), hidden, Head(weight), scale)
    logits = hidden @ weight.T
    assert_close(largest, logits.max(-1).values)
    assert_close(scaled, logits.sum(-1) * scale)
    got = torch.autograd.grad(largest.sum() + scaled.sum(), [hidden, weight])
    assert_close(got, torch.autograd.grad((logits.max(-1).values + logits.sum(-1) * scale).sum(), [hidden, weight]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenRequest(divergences={"kl": forward_kl}), "divergences kl need a reference, got None"),
        (lambda: TokenRequest(temperature=0.0), "temperature must be > 0, got 0.0"),
    ],
)
def test_errors_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class PeakMemory(TorchDispatchMode):
    """Resident memory after every operation, also those of the backward pass."""

    def __init__(self):
        super().__init__()
        self.process = psutil.Process()
        self.start = self.peak = self.process.memory_info().rss

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.peak = max(self.peak, self.process.memory_info().rss)
        return result


def update(positions, vocabulary, two_models):
    """Forward and backward of random states through the engine."""
    hidden = torch.randn(positions, 4, requires_grad=True)
    head = Head(torch.randn(vocabulary, 4, requires_grad=True))
    labels = torch.randint(vocabulary, (positions,))
    reference = ReferenceStates(torch.randn(positions, 4), Head(torch.randn(vocabulary, 4)))
    request = TokenRequest(reference=reference, divergences={"kl": forward_kl}) if two_models else TokenRequest()
    values = token_values(hidden, labels, head, request)
    (values.logps.sum() + sum(divergence.sum() for divergence in values.divergences.values())).backward()


@pytest.mark.parametrize("two_models", [False, True])
def test_the_whole_vocabulary_never_stands_in_memory(monkeypatch, two_models):
    """512 positions of 50,000 words are 102 MB in float32; a naive update holds them three times or more."""
    monkeypatch.setitem(engine.BLOCK_ELEMENTS, "cpu", 1 << 19)
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: freed blocks go back at once, so resident is in use
    update(8, 50_000, two_models)  # what libraries allocate once
    with PeakMemory() as memory:
        update(512, 50_000, two_models)
    assert memory.peak - memory.start < 0.5 * 512 * 50_000 * 4
