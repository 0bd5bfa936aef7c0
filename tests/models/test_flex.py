"""FlexAttention over packed sequences: the values of the loop over lengths, block masks, and the choice of a kernel."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine import flex
from rankpo.models.engine.flex import BLOCK, Documents
from rankpo.models.engine.packing import attend_by_length, implementation
from rankpo.models.engine.varlen import Pattern
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import LENGTHS, backbone, sequences

CPU = torch.device("cpu")
LONG = [300, 128, 128, 70, 5, 1]
PATTERNS = [(causal, window) for causal in (False, True) for window in (None, 1, 3, 150)]


@pytest.mark.parametrize(
    ("causal", "window", "attended", "key_heads", "scale"),
    [
        (False, None, None, 4, None),
        (True, None, None, 2, 0.3),
        (True, 5, None, 4, None),
        (False, 5, [6, 9, 2, 2, 1], 2, None),
        (True, None, [6, 9, 2, 2, 1], 4, 0.3),
    ],
)
def test_it_is_the_loop(causal, window, key_heads, scale, attended):
    lengths = [9, 9, 5, 2, 1]
    torch.manual_seed(0)
    given = [torch.randn(1, heads, sum(lengths), 8) for heads in (4, key_heads, key_heads)]
    pattern = Pattern(causal=causal, window=window, scale=scale, attended=attended)
    of_flex = [tensor.clone().requires_grad_() for tensor in given]
    of_loop = [tensor.clone().requires_grad_() for tensor in given]
    ours = flex.attend(*of_flex, Documents(lengths, CPU, attended), pattern)
    loop = attend_by_length(*of_loop, lengths, pattern)
    assert_close(ours, loop, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(loop)
    (ours * weights).sum().backward()
    (loop * weights).sum().backward()
    for one, other in zip(of_flex, of_loop, strict=True):
        assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)
    with warnings.catch_warnings(action="ignore"):  # torch advises to compile.
        documents = Documents(lengths, CPU, attended)
        of_torch = flex_attention(
            *given, block_mask=documents.mask(causal, window), scale=scale, enable_gqa=key_heads != 4
        )
    assert_close(of_torch.transpose(1, 2), loop.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("causal", "window"), PATTERNS)
@pytest.mark.parametrize("attended", [None, [200, 128, 60, 70, 5, 1]], ids=["all", "limited"])
def test_listed_blocks_hold_every_allowed_pair_and_whole_blocks_nothing_else(causal, window, attended):
    """Eager attention reads the rule for pairs alone; the compiled kernel reads these lists too."""
    documents = Documents(LONG, CPU, attended)
    mask = documents.mask(causal, window)
    size = sum(LONG)
    query, key = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    number = torch.arange(len(LONG)).repeat_interleave(torch.tensor(LONG))
    limit = torch.tensor(LONG if attended is None else attended)
    start = torch.tensor([0, *LONG]).cumsum(0)[:-1]
    allowed = (number[query] == number[key]) & (key < (start + limit)[number][query])
    allowed &= (query >= key) if causal else True
    allowed &= (query - key).abs() < window if window is not None else True
    assert torch.equal(mask.mask_mod(None, None, query, key), allowed)

    count = -(-size // BLOCK)
    padded = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
    padded[:size, :size] = allowed
    by_block = padded.view(count, BLOCK, count, BLOCK)
    some, every = (torch.from_numpy(blocks) for blocks in documents.blocks(causal, window))
    assert not (by_block.any(3).any(1) & ~some).any()
    assert not (every & ~by_block.all(3).all(1)).any()
    if attended is None:
        assert torch.equal(some, by_block.any(3).any(1))  # No block is computed in vain.
        assert torch.equal(every, by_block.all(3).all(1)) or window is not None
    listed = np.zeros((count, count), dtype=bool)
    for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        for row in range(count):
            chosen = indices[0, 0, row, : int(counts[0, 0, row])].numpy()
            assert not listed[row, chosen].any()
            listed[row, chosen] = True
    assert (listed == some.numpy()).all()


@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_a_model_with_flex_attention_has_the_same_hidden_states(family):
    def states(asked):
        base = backbone(family)
        base.config._attn_implementation = asked
        settings = EmbeddingSettings(query_max_length=60, passage_max_length=60)
        model = EmbeddingModel(base, EmbeddingInputs(byte_tokenizer(), settings), layout="packed")
        assert ("flex" in base.config._attn_implementation) == (asked == "flex_attention")
        return [hidden for _, hidden, _ in model.hidden_states(sequences(LENGTHS))]

    for one, other in zip(states("sdpa"), states("flex_attention"), strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


class Cuda:
    """What a choice reads of queries on a GPU."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, dtype=torch.bfloat16, head=64):
        self.dtype, self.shape = dtype, (1, 4, 100, head)


@pytest.mark.parametrize(
    ("query", "dropout", "attended", "works", "expected"),
    [
        (Cuda(), 0.0, None, True, "varlen"),
        (Cuda(), 0.0, [5], True, "flex"),  # Some tokens inside a sequence are masked.
        (Cuda(head=257), 0.0, None, True, "flex"),
        (Cuda(head=60), 0.0, None, True, "flex"),
        (Cuda(torch.float32), 0.0, None, True, "flex"),
        (Cuda(torch.float32), 0.0, None, False, "lengths"),  # The compiler is missing, for example.
        (Cuda(torch.float32, head=8), 0.0, None, True, "lengths"),
        (Cuda(), 0.1, None, True, "lengths"),  # Neither kernel has dropout.
        (torch.zeros(1, 4, 100, 64), 0.0, None, True, "lengths"),
    ],
)
def test_the_order_of_kernels(monkeypatch, query, dropout, attended, works, expected):
    monkeypatch.setattr(flex, "works", lambda device, dtype, head: works)
    assert implementation(query, dropout, Pattern(causal=True, attended=attended)) == expected


def test_a_kernel_that_does_not_run_is_named_once(monkeypatch):
    def broken(*given, **named):
        raise RuntimeError("no compiler was found\nand more")

    monkeypatch.setattr(flex, "attend", broken)
    flex.works.cache_clear()
    with pytest.warns(UserWarning, match="FlexAttention is not used, .*: no compiler was found$"):
        assert not flex.works(CPU, torch.float32, 16)
    assert not flex.works(CPU, torch.float32, 16)
    flex.works.cache_clear()


def test_a_kernel_that_runs_is_used():
    flex.works.cache_clear()
    assert flex.works(CPU, torch.float32, 16)
    flex.works.cache_clear()
