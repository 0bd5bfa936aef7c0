"""A packed row, padded chunks and transformers' own output, sequence by sequence, are one function of the weights."""

import pytest
import torch
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.packing import window_mask
from rankpo.models.random_weights import byte_tokenizer, random_backbone
from tests.models.families import FAMILIES, LENGTHS, WINDOW, backbone, sequences


def bare(model, **options):
    return EmbeddingModel(
        model,
        EmbeddingInputs(byte_tokenizer(), EmbeddingSettings(query_max_length=60, passage_max_length=60)),
        **options,
    )


def alone(family, texts):
    """transformers' own eager attention, one sequence at a time, as [N] list of [length, D]; and the model."""
    model = backbone(family, attention="eager")
    return model, [model(input_ids=ids[None]).last_hidden_state[0] for ids in texts.input_ids.split([*LENGTHS])]


def ours(model, texts):
    """[length, D] per sequence in input order, from chunks in the model's own order."""
    found = {}
    for rows, hidden, lengths in model.hidden_states(texts):
        found.update(zip(rows.tolist(), hidden.split(lengths.tolist()), strict=True))
    return [found[row] for row in range(len(texts))]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_transformers_alone(family, layout):
    texts = sequences()
    plain, expected = alone(family, texts)
    model = bare(backbone(family), layout=layout, chunk_tokens=40)
    actual = ours(model, texts)
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(3)) for part in expected]
    for own, theirs in zip(actual, expected, strict=True):
        assert_close(own, theirs, rtol=1e-4, atol=2e-5)
    for parts in (actual, expected):
        sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    compared = 0
    for name, parameter in model.backbone.named_parameters():
        if not parameter.requires_grad:  # an encoder's pooler, which no embedding uses
            assert name not in theirs
            continue
        scale = float(theirs[name].abs().max())
        assert_close(
            parameter.grad, theirs[name], rtol=1e-3, atol=1e-4 * max(1.0, scale), msg=lambda m, n=name: f"{n}: {m}"
        )
        compared += 1
    assert compared >= 14


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_packs_every_family(family):
    assert bare(backbone(family)).packed


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "modernbert"])
def test_windows_of_the_test_models_hide_something(family):
    """Without its window the model says something else: else the test above would not see a missing one."""
    texts = sequences()
    _, expected = alone(family, texts)
    name = "local_attention" if family == "modernbert" else "sliding_window"
    wide = bare(backbone(family, **{name: 60}), layout="padded")
    assert (ours(wide, texts)[1] - expected[1]).abs().max() > 1e-3
    assert LENGTHS[1] > WINDOW


def test_window_mask_by_hand():
    """Window 2 over 4 tokens: itself and one before; bidirectional also one behind."""
    one, _ = True, False
    causal = [[one, _, _, _], [one, one, _, _], [_, one, one, _], [_, _, one, one]]
    both = [[one, one, _, _], [one, one, one, _], [_, one, one, one], [_, _, one, one]]
    assert window_mask(4, 2, True, torch.device("cpu")).tolist() == causal
    assert window_mask(4, 2, False, torch.device("cpu")).tolist() == both
    assert window_mask(4, 4, True, torch.device("cpu")) is None


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("budget", [1, 12, 40, 10_000])
def test_chunking_changes_nothing(family, budget):
    texts = sequences()
    for layout in ("packed", "padded"):
        model = bare(backbone(family), layout=layout, chunk_tokens=budget)
        whole = bare(backbone(family), layout="packed", chunk_tokens=10_000)
        assert_close(ours(model, texts), ours(whole, texts), rtol=1e-4, atol=2e-5)


def test_chunks_hold_the_budget():
    """Packed, a chunk's tokens fit; padded, its longest times its number. What is longer alone stands alone."""
    texts = sequences((30, 5, 7, 6, 7, 1))
    for layout in ("packed", "padded"):
        model = bare(backbone("bert"), layout=layout, chunk_tokens=15)
        chunks = [lengths.tolist() for _, _, lengths in model.hidden_states(texts)]
        assert sorted(length for chunk in chunks for length in chunk) == [1, 5, 6, 7, 7, 30]
        assert chunks[0] == [30]
        for chunk in chunks[1:]:
            assert (sum(chunk) if layout == "packed" else chunk[0] * len(chunk)) <= 15


def test_what_cannot_be_packed_is_padded_or_refused():
    """MPNet adds a position bias to its scores and runs eager only; eager attention has no packed form."""
    biased = {**FAMILIES["bert"], "model_type": "mpnet"}
    assert not bare(random_backbone(biased, "eager")).packed
    assert not bare(backbone("bert", attention="eager")).packed
    with pytest.raises(
        ValueError, match=r"model\.layout=packed: MPNetModel cannot be packed; set model\.layout=padded"
    ):
        bare(random_backbone(biased, "eager"), layout="packed")
    with pytest.raises(ValueError, match="auto, packed, padded, got 'row'"):
        bare(backbone("bert"), layout="row")


def test_decoders_keep_no_cache():
    """Keys and values for a continuation that never comes would stay in memory through the whole forward pass."""
    model = bare(backbone("llama"))
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.past_key_values))
    list(model.hidden_states(sequences()))
    assert seen and all(cache is None for cache in seen)
