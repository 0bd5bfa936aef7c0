"""Batches of an embedding model: each distinct sequence once, prompts and lengths by role, labels under the mask."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from rankpo.data.batch import join, labels_of, select
from rankpo.data.loaders.ranking import ContrastiveDataLoader, PairedPreferenceDataLoader
from rankpo.data.table import open_table
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.types import Example, Sequences
from tests.data.test_text_store import Fixed

HEAD, TAIL = [101], [102, 103]


class Letters:
    """A tokenizer of letters that puts 101 in front and 102, 103 behind."""

    is_fast = False
    truncation_side = "right"
    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __call__(self, text, add_special_tokens=True, **options):
        if not isinstance(text, str):
            return {"input_ids": [self(item, add_special_tokens)["input_ids"] for item in text]}
        ids = [ord(letter) for letter in text]
        return {"input_ids": HEAD + ids + TAIL if add_special_tokens else ids}

    def __repr__(self):
        return "Letters()"


def inputs(**settings) -> EmbeddingInputs:
    return EmbeddingInputs(
        Letters(), EmbeddingSettings(**{"query_max_length": 8, "passage_max_length": 10, **settings})
    )


def batch_of(tmp_path: Path, examples, reader: EmbeddingInputs, loader=PairedPreferenceDataLoader, **options):
    table = open_table(tmp_path, [Fixed(examples)], reader.pieces(), lambda message: None)
    made = loader(table=table, batch_size=len(examples), seed=1, shuffle=False, **options)
    return table, reader.collate(table, made.groups(0), with_positives=loader is ContrastiveDataLoader)


def texts(sequences: Sequences, rows) -> list[str]:
    """What the sequences at these rows say, without special tokens, which are checked."""
    starts = torch.cumsum(sequences.lengths, 0) - sequences.lengths
    found = []
    for row in torch.as_tensor(rows).flatten().tolist():
        ids = sequences.input_ids[starts[row] : starts[row] + sequences.lengths[row]].tolist()
        assert ids[:1] == HEAD and ids[-2:] == TAIL
        found.append("".join(map(chr, ids[1:-2])))
    return found


def test_a_text_stands_once_however_often_it_is_used(tmp_path):
    """apple is in three pairs and a query of its own: with equal lengths and prompts it is one sequence."""
    examples = [
        Example("red", ("apple", "sky"), (1.0, 0.0), "a"),
        Example("red", ("apple", "sea"), (1.0, 0.0), "b"),
        Example("apple", ("sky", "red"), (0.0, 1.0), "c"),
    ]
    reader = inputs(query_max_length=10)
    _, batch = batch_of(tmp_path, examples, reader)
    assert sorted(texts(batch.sequences, range(len(batch.sequences)))) == ["apple", "red", "sea", "sky"]
    assert texts(batch.sequences, batch.queries) == ["red", "red", "apple"]
    assert texts(batch.sequences, batch.candidates) == ["apple", "sky", "apple", "sea", "red", "sky"]  # chosen first
    assert batch.ids == ("a", "b", "c")


def test_another_length_by_role_makes_two_sequences(tmp_path):
    _, batch = batch_of(tmp_path, [Example("apple", ("apple", "sky"), (1.0, 0.0), "a")], inputs())
    assert sorted(texts(batch.sequences, range(len(batch.sequences)))) == ["apple", "apple", "sky"]
    assert batch.queries.tolist() != batch.candidates[:, 0].tolist()


def test_prompts_and_lengths_belong_to_the_role(tmp_path):
    """Room for 8 - 3 letters of a query and 10 - 3 of a passage, the prompt included; the end is cut, not the tail."""
    reader = inputs(query_prompt="q:", passage_prompt="p:")
    _, batch = batch_of(tmp_path, [Example("abcdefgh", ("stuvwxyz", "st"), (1.0, 0.0), "a")], reader)
    assert texts(batch.sequences, batch.queries) == ["q:abc"]
    assert texts(batch.sequences, batch.candidates) == ["p:stuvw", "p:st"]
    assert texts(reader.sequences_of(["abcdefgh"], "query"), [0]) == ["q:abc"]
    assert texts(reader.sequences_of(["stuvwxyz", "st"], "candidate"), [0, 1]) == ["p:stuvw", "p:st"]
    assert reader.kept(np.array([1, 5, 6, 9]), "query").tolist() == [4, 8, 8, 8]
    assert reader.kept(np.array([1, 7, 8]), "candidate").tolist() == [4, 10, 10]


def test_costs_are_the_tokens_of_a_group_s_distinct_sequences(tmp_path):
    reader = inputs()
    table, _ = batch_of(tmp_path, [Example("abcdefgh", ("st", "stuvwxyz"), (1.0, 0.0), "a")], reader)
    groups = PairedPreferenceDataLoader(table=table, batch_size=1, seed=1).groups(0)
    assert reader.costs(table, groups).tolist() == [8 + 5 + 10]


def test_known_positives_of_other_rows_are_found(tmp_path):
    """sky is relevant to red in another example, so wherever it stands in the batch it is no negative of red."""
    examples = [
        Example("red", ("apple", "sea"), (1.0, 0.0), "a"),
        Example("blue", ("sky", "moon"), (1.0, 0.0), "b"),
        Example("red", ("sky",), (1.0,), "c"),
    ]
    _, batch = batch_of(tmp_path, examples, inputs(), ContrastiveDataLoader, num_negatives=1)
    pairs = {(batch.ids[query], texts(batch.sequences, [row])[0]) for query, row in batch.positives.tolist()}
    assert pairs == {("a", "apple"), ("a", "sky"), ("b", "sky"), ("c", "apple"), ("c", "sky")}


def test_labels_are_padded_under_a_mask(tmp_path):
    examples = [
        Example("red", ("apple", "sea", "moon"), (1.0, 0.0, 0.0), "a"),
        Example("blue", ("sky",), (1.0,), "b", confidence=0.75),
    ]
    table, batch = batch_of(tmp_path, examples, inputs(), ContrastiveDataLoader, num_negatives=5)
    assert batch.labels.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels.relevance.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert batch.labels.confidence.tolist() == [1.0, 0.75]
    assert batch.labels.teacher is None
    assert batch.candidates[1, 1:].tolist() == [0, 0]
    groups = ContrastiveDataLoader(table=table, batch_size=2, seed=1, shuffle=False, num_negatives=5).groups(0)
    assert labels_of(groups, width=4).mask.shape == (2, 4)
    assert labels_of([]).relevance.shape == (0, 1)


def test_teacher_scores_follow_their_candidates(tmp_path):
    examples = [Example("red", ("apple", "sea"), (0.0, 1.0), "a", teacher=(0.2, 0.9))]
    _, batch = batch_of(tmp_path, examples, inputs())
    assert texts(batch.sequences, batch.candidates) == ["sea", "apple"]
    assert batch.labels.teacher.tolist() == [[pytest.approx(0.9), pytest.approx(0.2)]]


def test_stored_reference_scores_are_looked_up_by_slot(tmp_path):
    reader = inputs()
    examples = [Example("red", ("apple", "sea"), (0.0, 1.0), "a"), Example("blue", ("sky", "sea"), (1.0, 0.0), "b")]
    table, _ = batch_of(tmp_path, examples, reader)
    groups = PairedPreferenceDataLoader(table=table, batch_size=2, seed=1, shuffle=False).groups(0)
    batch = reader.collate(table, groups, reference=np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32))
    assert batch.reference.tolist() == [
        [pytest.approx(0.2), pytest.approx(0.1)],
        [pytest.approx(0.3), pytest.approx(0.4)],
    ]


def test_special_tokens_are_learned_from_the_tokenizer():
    assert SpecialTokens.learn(Letters()) == SpecialTokens((101,), (102, 103))

    class Altering(Letters):
        def __call__(self, text, add_special_tokens=True, **options):
            ids = super().__call__(text, add_special_tokens)["input_ids"]
            return {"input_ids": ids[::-1] if add_special_tokens else ids}

    with pytest.raises(ValueError, match="the tokenizer alters a text when it adds special tokens"):
        SpecialTokens.learn(Altering())


def test_the_fingerprint_of_pieces_follows_prompts_not_lengths():
    first = inputs().pieces().fingerprint
    assert inputs(query_max_length=20).pieces().fingerprint == first
    assert inputs(query_prompt="q:").pieces().fingerprint != first


def test_select_takes_rows_in_the_order_asked():
    sequences = join([np.array([1, 2]), np.array([3]), np.array([4, 5, 6])])
    chosen = select(sequences, np.array([2, 0]))
    assert chosen.input_ids.tolist() == [4, 5, 6, 1, 2] and chosen.lengths.tolist() == [3, 2]
    assert len(select(sequences, np.array([], dtype=np.int64))) == 0
    assert join([]).input_ids.dtype == torch.int64
