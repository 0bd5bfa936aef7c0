"""BM25 against its formula, and words of several scripts."""

import math

import numpy as np
import pytest

from rankpo.retrieval.bm25 import Bm25Error, Bm25Index, Bm25Settings, words

TEXTS = ["red fox red den", "fox", "blue whale in the blue sea", "den den"]


def formula(query, texts, k1, b):
    """Lucene's: ln(1 + (N - df + .5)/(df + .5)) · tf/(tf + k1·(1 - b + b·length/mean length)), summed over the query."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        total = 0.0
        for word in query.split():
            frequency = sum(word in other for other in documents)
            count = document.count(word)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            total += idf * count / (count + k1 * (1 - b + b * len(document) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0)])
def test_equals_the_formula(k1, b):
    index = Bm25Index(TEXTS, Bm25Settings(k1=k1, b=b))
    for query in ("red den", "fox fox whale", "blue unknown"):
        assert np.allclose(index.scores(query), formula(query, TEXTS, k1, b), atol=1e-5)


def test_a_query_without_known_word_scores_nothing():
    index = Bm25Index(TEXTS, Bm25Settings())
    assert index.scores("yellow").tolist() == [0.0] * 4
    assert index.scores("").tolist() == [0.0] * 4


def test_words_of_scripts_with_and_without_spaces():
    assert words("Deep-sea 3D_Mapping: 海底地形 in CAFE\u0301 x") == [
        *("deep", "sea", "3d", "mapping"),
        *("海底", "底地", "地形"),
        *("in", "café", "x"),
    ]
    assert words("山") == ["山"]


def test_chinese_texts_are_found_by_pairs_of_characters():
    scores = Bm25Index(["海底地形测绘", "罗马硬币", "图着色"], Bm25Settings()).scores("海底测绘")
    assert scores[0] > 0
    assert scores[1:].tolist() == [0.0, 0.0]


def test_another_tokenizer_is_used_for_texts_and_queries():
    index = Bm25Index(["abc", "xyz"], Bm25Settings(), tokenize=list)
    assert index.scores("zb").tolist() == pytest.approx([math.log(2) / (1 + 1.5), math.log(2) / (1 + 1.5)], abs=1e-6)


def test_nothing_to_index_is_an_error():
    with pytest.raises(Bm25Error, match="none of 2 documents has a token"):
        Bm25Index(["!", ""], Bm25Settings())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method", "bm25l", "lucene, robertson, atire"),
        ("tokenizer", "x", "words, model"),
        ("b", 2, "in .0, 1."),
        ("k1", -1, ">= 0"),
    ],
)
def test_settings_name_the_key(key, value, message):
    with pytest.raises(ValueError, match=f"{key} must be .*{message}"):
        Bm25Settings(**{key: value})
