"""Truncation of static queries, which have no special tokens, at the side that the tokenizer states."""

import numpy as np
import pytest

from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.sparse.inputs import SparseInputs
from rankpo.models.sparse.settings import SparseSettings


@pytest.mark.parametrize(("side", "kept"), [("left", [6, 7, 8, 9]), ("right", [0, 1, 2, 3])])
def test_static_queries_are_cut_at_the_tokenizers_side(side, kept):
    tokenizer = byte_tokenizer()
    tokenizer.truncation_side = side
    inputs = SparseInputs(tokenizer, SparseSettings(query_encoder="static", query_max_length=4))
    assert inputs.assemble(np.arange(10), "query").tolist() == kept
