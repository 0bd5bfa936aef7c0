"""Long texts: the ids of their beginnings are those of the whole texts, and the rest costs nothing."""

import random
import subprocess
import sys

import pytest

from rankpo.data.text.long_texts import MARGIN, leading_ids, token_bound
from tests import tokenizers

ALPHABETS = {
    "words": ["how ", "deep ", "do ", "moles ", "dig? ", "it's ", "12345 ", "yes\n", "(a) ", "…", "naïve "],
    "blanks": [" ", "  ", "\n", "\t", "\r\n", " " * 300, "a", "\u3000", "\xa0"],
    "cjk": list("鼹鼠挖多深日本語テキスト。、한국어 "),
    "bytes": [chr(code) for code in range(1, 256)],
    "long words": ["x" * 90, "y" * 150, "z" * 700, " ", "w ", "-"],
    "special": ["<|endoftext|>", "<s>", "</s>", "[SEP]", "<|im_end|>", " moles", "<", "|", "[CLS", "e\u0301"],
    "combining": ["e", "\u0301", "\u0308", "👩\u200d🚀", "\ufe0f", "क्षि", " "],
}
FAMILIES = [tokenizers.qwen, tokenizers.roberta, tokenizers.bert, tokenizers.sentencepiece]


def random_text(seed, alphabet):
    chooser = random.Random(seed)
    letters = [*ALPHABETS[alphabet], *(ALPHABETS["words"] if seed % 2 else [])]
    return "".join(chooser.choice(letters) for _ in range(chooser.randint(200, 800)))


def whole(tokenizer, text, split_special):
    options = {"split_special_tokens": True} if split_special else {}
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]


@pytest.mark.parametrize("split_special", [False, True])
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("make", FAMILIES)
def test_the_beginning_has_the_ids_of_the_whole_text(make, alphabet, split_special):
    tokenizer = make()
    for seed in range(2):
        texts = [random_text(seed * 7 + n, alphabet) for n in range(3)]
        for bound in (16, 100):
            for text, ids in zip(texts, leading_ids(tokenizer, texts, bound, split_special), strict=True):
                full = whole(tokenizer, text, split_special)
                assert ids[:bound] == full[:bound]
                assert len(ids) in (len(full), bound)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_long_text_is_not_tokenised_whole(make, monkeypatch):
    tokenizer, seen = make(), []
    kind, encode = type(tokenizer), type(tokenizer).__call__
    monkeypatch.setattr(kind, "__call__", lambda self, text, **o: seen.append(len(text)) or encode(self, text, **o))
    (ids,) = leading_ids(tokenizer, ["how deep do moles dig? " * 50_000], 2 * MARGIN, False)
    assert len(ids) == 2 * MARGIN
    assert seen and max(seen) <= 16 * 2 * MARGIN


def test_usual_maximum_lengths_share_a_bound():
    assert token_bound(64) == token_bound(8192) == 8192
    assert token_bound(8193) == 16384


MEASURED = """
import resource
from rankpo.models.inputs import TextInputs
from tests.tokenizers import bert
class Settings: query_prompt = passage_prompt = ""; query_max_length = passage_max_length = 64
inputs = TextInputs(bert(), Settings())
inputs.sequences_of(["how deep do moles dig"], "query")
text = "how deep do moles dig " * 230_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert inputs.sequences_of([text], "query").lengths.tolist() == [64]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_a_query_of_5_mb_costs_little_memory():
    printed = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 100 * 1024
