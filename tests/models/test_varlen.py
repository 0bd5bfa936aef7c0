"""The variable-length kernel's arguments, on CPUs: a stand-in of torch's signature gives what the loop gives."""

import inspect

import pytest
import torch
from torch.nn.attention import varlen as of_torch
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine import varlen
from rankpo.models.engine.packing import attend_by_length
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import FAMILIES, LENGTHS, backbone, sequences


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
             enable_gqa=False, seqused_k=None, block_table=None, num_splits=None):  # fmt: skip
    """varlen_attn by its documentation: [T, heads, d], sequence by sequence, with a mask from the window's two sides."""
    assert cu_seq_q.dtype == torch.int32
    of_queries, of_keys = ((borders[1:] - borders[:-1]).tolist() for borders in (cu_seq_q, cu_seq_k))
    assert max_q == max(of_queries) and max_k == max(of_keys)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    before, after = window_size
    outputs = []
    parts = query.split(of_queries), key.split(of_keys), value.split(of_keys)
    for q, k, v in zip(*parts, strict=True):
        k, v = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (k, v))
        ahead = torch.arange(len(k))[None, :] - torch.arange(len(k) - len(q), len(k))[:, None]
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        hidden |= (ahead > after) if after >= 0 else hidden
        hidden |= (-ahead > before) if before >= 0 else hidden
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch):
    """The stand-in in place of the kernel, for every device and type. Returns the list of its calls."""
    calls = []

    def called(*arguments, **named):
        calls.append(named)
        return stand_in(*arguments, **named)

    monkeypatch.setattr(of_torch, "varlen_attn", called)
    monkeypatch.setattr(varlen, "fits", lambda query, dropout: dropout == 0)
    return calls


def test_the_stand_in_has_the_kernels_signature():
    assert list(inspect.signature(stand_in).parameters) == list(inspect.signature(of_torch.varlen_attn).parameters)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_kernel_call_is_the_loop(kernel, causal, window, key_heads, scale):
    lengths = [9, 9, 5, 2, 1]
    torch.manual_seed(0)
    given = [torch.randn(1, heads, sum(lengths), 8).double() for heads in (4, key_heads, key_heads)]
    pattern = varlen.Pattern(causal=causal, window=window, scale=scale)
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    of_kernel = [tensor.clone().requires_grad_() for tensor in given]
    of_loop = [tensor.clone().requires_grad_() for tensor in given]
    ours = varlen.attend(*of_kernel, borders, max(lengths), pattern)
    loop = attend_by_length(*of_loop, lengths, pattern)
    assert_close(ours, loop)
    weights = torch.randn_like(loop)
    (ours * weights).sum().backward()
    (loop * weights).sum().backward()
    for one, other in zip(of_kernel, of_loop, strict=True):
        assert_close(one.grad, other.grad)
    assert len(kernel) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_hidden_states_with_one_call_a_layer(family, kernel, monkeypatch):
    def states(fits):
        monkeypatch.setattr(varlen, "fits", lambda query, dropout: fits)
        model = EmbeddingModel(
            backbone(family),
            EmbeddingInputs(byte_tokenizer(), EmbeddingSettings(query_max_length=60, passage_max_length=60)),
            layout="packed",
        )
        kernel.clear()
        return [hidden for _, hidden, _ in model.hidden_states(sequences(LENGTHS))], len(kernel)

    (by_loop, none), (by_kernel, calls) = states(False), states(True)
    assert none == 0 and calls > 0
    for one, other in zip(by_loop, by_kernel, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_fits_the_kernel():
    class Cuda:
        is_cuda, dtype, shape = True, torch.bfloat16, (1, 4, 100, 64)

    assert varlen.fits(Cuda(), 0.0)
    assert not varlen.fits(Cuda(), 0.1)
    assert not varlen.fits(torch.zeros(1, 4, 100, 64, dtype=torch.bfloat16), 0.0)  # a CPU
    for name, value in (("dtype", torch.float32), ("shape", (1, 4, 100, 257)), ("shape", (1, 4, 100, 60))):
        other = Cuda()
        setattr(other, name, value)
        assert not varlen.fits(other, 0.0)


def test_the_kernel_itself_takes_the_arguments():
    """Under fake tensors, torch's own operator checks and shapes the call that a GPU would run."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, key = (torch.empty(1, heads, 20, 64, dtype=torch.bfloat16, device="meta") for heads in (4, 2))
        borders = torch.zeros(4, dtype=torch.int32, device="meta")
        pattern = varlen.Pattern(causal=True, window=5)
        output = varlen.attend(query, key, key, borders, 9, pattern)
    assert output.shape == (1, 20, 4, 64) and output.dtype == torch.bfloat16
