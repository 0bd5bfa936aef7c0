"""Pooling, prompts, lengths and `encode`: what a text becomes does not depend on its neighbours."""

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.testing import assert_close

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.pooling import pool
from rankpo.models.random_weights import byte_tokenizer
from rankpo.types import Sequences
from tests.models.families import FAMILIES, LENGTHS, backbone, sequences

TEXTS = ["soil", "a field of wheat in the rain", "", "soil", "ploughing", "x"]


def model_of(family="bert", *, layout="auto", tokenizer=None, chunk_tokens=None, **settings):
    lengths = {"query_max_length": 12, "passage_max_length": 20}
    return EmbeddingModel(
        backbone(family),
        EmbeddingInputs(tokenizer or byte_tokenizer(), EmbeddingSettings(**{**lengths, **settings})),
        layout=layout,
        chunk_tokens=chunk_tokens,
    ).eval()


def test_pooling_by_hand():
    """Two sequences of 3 and 1 tokens: rows 0 to 2 and row 3."""
    hidden = torch.tensor([[1.0, 10], [2, 20], [6, 30], [5, 50]])
    lengths = torch.tensor([3, 1])
    assert pool(hidden, lengths, "cls").tolist() == [[1, 10], [5, 50]]
    assert pool(hidden, lengths, "mean").tolist() == [[3, 20], [5, 50]]
    assert pool(hidden, lengths, "last").tolist() == [[6, 30], [5, 50]]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_last_token_is_found_where_pad_equals_eos_and_stands_in_the_text(layout):
    """Ids 2 are both pad and eos: at the end, twice, and inside; each last token is at its length all the same."""
    rows = [[5, 6, 2], [7, 2, 2], [2, 8, 9, 10], [2]]
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = model_of("llama", layout=layout, tokenizer=tokenizer, pooling="last", normalize=False)
    texts = Sequences(torch.tensor([token for row in rows for token in row]), torch.tensor([len(row) for row in rows]))
    plain = backbone("llama", attention="eager")
    expected = torch.stack([plain(torch.tensor([row])).last_hidden_state[0, -1] for row in rows])
    assert_close(model(texts), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "mistral"])
def test_permutation_and_company_change_nothing(family, pooling):
    texts = sequences()
    model = model_of(family, pooling=pooling)
    whole = model(texts)
    order = [4, 2, 0, 5, 3, 1]
    parts = texts.input_ids.split([*LENGTHS])
    shuffled = Sequences(torch.cat([parts[i] for i in order]), texts.lengths[order])
    assert_close(model(shuffled), whole[order], rtol=1e-4, atol=1e-5)
    for row, part in enumerate(parts):
        assert_close(model(Sequences(part, torch.tensor([len(part)])))[0], whole[row], rtol=1e-4, atol=1e-5)


def test_truncation_normalisation_and_matryoshka():
    """truncate_dim cuts before the norm is taken, so that what is left is a unit vector again."""
    texts = sequences()
    raw = model_of(normalize=False)(texts)
    short = model_of(truncate_dim=7)
    assert short.dim == 7 and model_of().dim == 24
    cut = raw[:, :7]
    assert_close(short(texts), cut / cut.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert_close(model_of(normalize=False, truncate_dim=7)(texts), cut, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"model\.truncate_dim=25, but the model has 24 dimensions"):
        model_of(truncate_dim=25)


def test_prompts_and_lengths_belong_to_roles():
    """`[CLS] q: abcdefgh… [SEP]` cut to 12 tokens keeps 7 bytes of the query; passages keep 18 and have no prompt."""
    model = model_of(query_prompt="q: ")
    tokens = model.inputs.sequences_of(["abcdefghijklmnopqrstuvwxyz"], "query")
    text = byte_tokenizer().decode(tokens.input_ids[1:-1])
    assert (text, int(tokens.lengths[0])) == ("q: abcdefg", 12)
    assert (int(tokens.input_ids[0]), int(tokens.input_ids[-1])) == (1, 2)
    passage = model.inputs.sequences_of(["abcdefghijklmnopqrstuvwxyz"], "candidate")
    assert byte_tokenizer().decode(passage.input_ids[1:-1]) == "abcdefghijklmnopqr"
    same = model.encode("q: ab") - model.encode("ab", role="query")
    assert np.abs(same).max() < 1e-6
    assert np.abs(model.encode("ab") - model.encode("ab", role="query")).max() > 1e-3


@pytest.mark.parametrize(("family", "usable"), [("bert", 80), ("roberta", 79), ("xlm-roberta", 79), ("llama", 80)])
def test_lengths_above_the_positions_are_refused(family, usable):
    """RoBERTa's first position is the pad id + 1: with pad id 0, one of 80 rows is never used."""
    assert model_of(family, passage_max_length=usable).settings.passage_max_length == usable
    with pytest.raises(ValueError) as caught:
        model_of(family, query_max_length=usable + 1, passage_max_length=500)
    assert str(caught.value).splitlines() == [
        f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
        for name, asked in (("query_max_length", usable + 1), ("passage_max_length", 500))
    ]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_the_longest_allowed_sequence_runs(family):
    """pad id 1, as the real ones have: 80 rows give 78 positions, and the 78th must not fall off the table."""
    settings = EmbeddingSettings(query_max_length=78, passage_max_length=78)
    for layout in ("packed", "padded"):
        model = EmbeddingModel(
            backbone(family, pad_token_id=1), EmbeddingInputs(byte_tokenizer(), settings), layout=layout
        ).eval()
        assert model(sequences((78, 3))).shape == (2, 24)


def test_encode_keeps_order_and_encodes_duplicates_once():
    model = model_of()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    embeddings = model.encode(TEXTS)
    assert sum(seen) == 5  # six texts, two of them equal
    assert embeddings.shape == (6, 24) and embeddings.dtype == np.float32
    assert (embeddings[0] == embeddings[3]).all()
    for text, row in zip(TEXTS, embeddings, strict=True):
        single = model.encode(text)
        assert single.shape == (24,)
        np.testing.assert_allclose(single, row, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert model.encode([]).shape == (0, 24)
    assert model.encode(tuple(TEXTS)).shape == (6, 24)


def test_encode_says_what_is_wrong():
    model = model_of()
    with pytest.raises(ValueError, match="role must be query or passage, got 'document'"):
        model.encode("a", role="document")
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got NoneType"):
        model.encode(["a", None])
    with pytest.raises(ValueError, match="at least one device"):
        model.encode("a", devices=[])


def test_encode_leaves_the_mode_and_no_graph():
    model = model_of()
    model.train()
    model.encode(TEXTS)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_two_processes_encode_like_one(capsys):
    model = model_of()
    texts = [f"{'text ' * (number % 4)}{number}" for number in range(30)]
    expected = model.encode(texts, role="query")
    np.testing.assert_allclose(
        model.encode(texts, role="query", devices=["cpu", "cpu"], progress=True), expected, atol=1e-6
    )
    assert "100%" in capsys.readouterr().out


def test_progress_counts_every_text():
    model = model_of()
    texts = model.inputs.sequences_of([f"number {number}" for number in range(50)], "candidate")
    counted = []
    model.encode_sequences(texts, counted.append)
    assert sum(counted) == 50


def test_special_tokens_are_learned_from_the_tokenizer():
    """A Llama-like tokenizer puts only a first token: nothing is appended, and nothing assumed."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 1)]
    )
    model = model_of("llama", tokenizer=tokenizer, pooling="last")
    ids = model.inputs.sequences_of(["ab"], "candidate").input_ids.tolist()
    assert ids == tokenizer("ab")["input_ids"]
    assert len(ids) == 3


def test_training_without_dropout_is_evaluation_mode():
    """`disable_dropout` reaches every probability of every family: else curves would depend on the micro-batches."""
    from rankpo.tasks.work.assemble import disable_dropout

    texts = sequences()
    for family in FAMILIES:
        changes = {"attention_dropout": 0.5} if family in ("modernbert", "llama", "mistral", "qwen3") else {}
        model = EmbeddingModel(
            backbone(family, **changes),
            EmbeddingInputs(byte_tokenizer(), EmbeddingSettings(query_max_length=20, passage_max_length=20)),
        )
        expected = model.eval()(texts)
        disable_dropout(model.train())
        assert_close(model(texts), expected, msg=lambda text, f=family: f"{f}: {text}")
