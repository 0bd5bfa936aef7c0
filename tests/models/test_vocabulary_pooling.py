"""Pooling over the vocabulary in blocks equals the pooling of all logits, with gradients, and needs less memory."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from rankpo.models.engine.token_logps import Head
from rankpo.models.engine.vocabulary_pooling import ACTIVATIONS, POOLING, pool_vocabulary

LENGTHS = (5, 1, 0, 9, 3)
FORMS = [(pooling, activation) for pooling in POOLING for activation in ACTIVATIONS]


def naive(hidden, lengths, weight, bias, pooling, activation):
    """Every logit at once, and autograd."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    values = torch.log1p(torch.relu(logits))
    values = torch.log1p(values) if activation == "log1p_relu" else values
    parts = values.split(lengths.tolist())
    pooled = [
        part.new_zeros(len(weight)) if not len(part) else part.amax(0) if pooling == "max" else part.sum(0)
        for part in parts
    ]
    return torch.stack(pooled)


def inputs(dtype, with_bias):
    generator = torch.Generator().manual_seed(3)
    shapes = ((sum(LENGTHS), 6), (11, 6), (11,))
    made = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return made if with_bias else [*made[:2], None]


@pytest.mark.parametrize("block_elements", [1, 33, 44, 10_000])  # 1, 3, 4 and all tokens at once
@pytest.mark.parametrize(("pooling", "activation"), FORMS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equal_to_all_logits_at_once_with_gradients(pooling, activation, block_elements, with_bias):
    lengths = torch.tensor(LENGTHS)
    hidden, weight, bias = inputs(torch.float32, with_bias)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    form = {"pooling": pooling, "activation": activation}
    ours = pool_vocabulary(hidden, lengths, Head(weight, bias), block_elements=block_elements, **form)
    expected = naive(hidden, lengths, weight, bias, **form)
    assert_close(ours, expected)
    share = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((ours * share).sum(), leaves)
    wanted = torch.autograd.grad((expected * share).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)
    with torch.no_grad():
        assert_close(pool_vocabulary(hidden, lengths, Head(weight, bias), **form), expected)


@pytest.mark.parametrize(("pooling", "activation"), FORMS)
def test_gradcheck_in_float64(pooling, activation):
    hidden, weight, bias = inputs(torch.float64, True)

    def pooled(hidden, weight, bias):
        head = Head(weight, bias)
        return pool_vocabulary(
            hidden, torch.tensor(LENGTHS), head, pooling=pooling, activation=activation, block_elements=33
        )

    assert pooled(hidden, weight, bias).dtype == torch.float64
    assert torch.autograd.gradcheck(pooled, (hidden, weight, bias))


def test_half_precision_states_give_float32_values():
    hidden, weight, bias = (tensor.detach() for tensor in inputs(torch.float32, True))
    leaf = hidden.bfloat16().requires_grad_()
    pooled = pool_vocabulary(leaf, torch.tensor(LENGTHS), Head(weight, bias))
    pooled.sum().backward()
    assert pooled.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
    assert_close(pooled, naive(leaf.detach().float(), torch.tensor(LENGTHS), weight, bias, "max", "relu"))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of max, sum, got 'mean'"),
        ({"activation": "gelu"}, "activation must be one of relu, log1p_relu, got 'gelu'"),
        ({"softcap": 3.0}, "soft cap"),
    ],
)
def test_other_forms_are_refused(form, message):
    hidden, weight, bias = inputs(torch.float32, True)
    softcap = form.pop("softcap", None)
    with pytest.raises(ValueError, match=message):
        pool_vocabulary(hidden, torch.tensor(LENGTHS), Head(weight, bias, softcap), **form)


MEASURE = """
import resource, torch
from rankpo.models.engine.token_logps import Head
from rankpo.models.engine.vocabulary_pooling import pool_vocabulary
hidden, weight = torch.randn(4 * 512, 8, requires_grad=True), torch.randn(30000, 8, requires_grad=True)
for pooling in ("max", "sum"):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool_vocabulary(hidden, torch.full((4,), 512), Head(weight), pooling=pooling).sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_far_below_all_logits():
    """2,048 tokens by 30,000 entries are 234 MiB of logits, and autograd would keep several such tensors."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    kibibytes = [int(line) for line in done.stdout.split()]
    assert len(kibibytes) == 2 and max(kibibytes) < 200 * 1024, kibibytes
