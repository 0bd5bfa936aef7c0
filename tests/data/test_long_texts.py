"""Long texts: the ids of their beginnings are those of the whole texts, and the rest costs nothing."""

import random
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest

from rankpo.data.text import long_texts, whole_texts
from rankpo.data.text.long_texts import MARGIN, leading_ids, token_bound, trailing_tokens
from rankpo.data.text.whole_texts import whole_ids
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.listwise.inputs import PASSAGE, QUERY, ListwiseInputs
from rankpo.models.listwise.settings import ListwiseSettings
from rankpo.models.reranker.inputs import RerankerInputs
from rankpo.models.reranker.settings import RerankerSettings
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


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("make", FAMILIES)
def test_the_end_has_the_ids_of_the_whole_text(make, alphabet):
    tokenizer = make()
    for seed in range(4):
        text = random_text(seed, alphabet) + random_text(seed + 1, "words")
        for bound in (16, 100):
            found = trailing_tokens(tokenizer, text, bound)
            assert found.ids == whole(tokenizer, text, False)[-bound:]
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            assert found.starts == [start for start, _ in offsets[-bound:]]


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("make", FAMILIES)
def test_a_whole_text_in_parts_has_the_ids_of_the_whole(make, alphabet, monkeypatch):
    """Wherever a part is cut; without blanks, a token near each cut may differ."""
    tokenizer = make()
    monkeypatch.setattr(whole_texts, "MARGIN", 40)
    texts = [random_text(0, alphabet) + random_text(n, "words") for n in range(2)]
    expected = [whole(tokenizer, text, True) for text in texts]
    for size in (300, 700):
        monkeypatch.setattr(whole_texts, "PART", size)
        found = [ids.tolist() for ids in whole_ids(tokenizer, texts)]
        if alphabet == "words":
            assert found == expected
        for one, other in zip(found, expected, strict=True):
            differing = (Counter(one) - Counter(other)) + (Counter(other) - Counter(one))
            assert differing.total() <= 8 * (1 + 4 * len(texts[0]) // size), differing


def test_no_call_of_the_tokenizer_is_large(monkeypatch):
    tokenizer, seen = tokenizers.bert(), []
    inputs = RerankerInputs(tokenizer, RerankerSettings(max_length=80, long_document="max_slice"))
    owner, encode = type(tokenizer), type(tokenizer).__call__
    monkeypatch.setattr(
        owner, "__call__", lambda self, text, **o: seen.append(sum(map(len, text))) or encode(self, text, **o)
    )
    sequences, owners = inputs.sliced([("how deep", "how deep do moles dig " * 10_000), ("why", "moles " * 3)])
    assert sum(seen) > 10_000 * 22 and max(seen) < 2 * whole_texts.PART
    assert len(sequences) > 500 and owners.tolist()[-1] == 1 and owners.tolist().count(1) == 1


# every kind reads long texts as it would read them whole


def reranker(tokenizer):
    inputs = RerankerInputs(tokenizer, RerankerSettings(max_length=80))
    return lambda texts: inputs.sequences_of([(texts[0], texts[1]), (texts[1], texts[2])])


def listwise(tokenizer):
    template = {"introduction": "{num}: {query}\n", "passage": "{identifier} {text}\n", "instruction": "{example}."}
    settings = ListwiseSettings(template=template, max_length=1200, window=2, stride=1, max_passage_tokens=40)
    inputs = ListwiseInputs(tokenizer, settings)

    def read(texts):
        rows = inputs.tokenize([QUERY + texts[0], *(PASSAGE + text for text in texts[1:])])
        return inputs.prompt(np.array(rows[0]), [np.array(row) for row in rows[1:]])

    return read


def causal(tokenizer, turns=False):
    inputs = CompletionInputs(tokenizer, CausalSettings(max_length=160, max_prompt_length=90))

    def read(texts):
        prompts = [(("system", texts[0]), ("user", texts[1])) if turns else texts[1], texts[2]]
        return inputs.sequences_of([*prompts, ""], [texts[0], texts[2], texts[1]])

    return read


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("kind", [reranker, listwise, causal, partial(causal, turns=True)],
                         ids=["reranker", "listwise", "causal", "conversation"])  # fmt: skip
def test_every_kind_reads_long_texts_as_if_whole(kind, make, monkeypatch):
    tokenizer = make()
    if tokenizer.eos_token is None and kind is not reranker:
        pytest.skip("a causal language model needs an end token")
    for seed in range(6):
        texts = [random_text(3 * seed + n, "words") + f" [{n}] " + random_text(n, "words") for n in range(3)]
        texts = [text.replace("\r\n", " ") for text in texts]
        monkeypatch.setattr(long_texts, "SMALLEST_BOUND", 1 << 20)
        expected = kind(tokenizer)(texts)
        monkeypatch.setattr(long_texts, "SMALLEST_BOUND", 16)
        monkeypatch.setattr(long_texts, "CHARACTERS_PER_TOKEN", 2)
        found = kind(tokenizer)(texts)
        for one, other in zip(values(expected), values(found), strict=True):
            assert one == other


@pytest.mark.parametrize("kind", [reranker, listwise, causal, partial(causal, turns=True)],
                         ids=["reranker", "listwise", "causal", "conversation"])  # fmt: skip
def test_no_kind_tokenises_a_long_text_whole(kind, monkeypatch):
    tokenizer, seen = tokenizers.qwen(), []
    read = kind(tokenizer)
    owner, encode = type(tokenizer), type(tokenizer).__call__

    def counting(self, text, **options):
        seen.append(sum(map(len, [text] if isinstance(text, str) else text)))
        return encode(self, text, **options)

    monkeypatch.setattr(owner, "__call__", counting)
    read([f"how deep do moles dig? {letter} " * 40_000 for letter in "abc"])
    assert seen and max(seen) < 200_000 < 40_000 * 24


def values(read):
    """What inputs have made of texts, as lists."""
    if isinstance(read, np.ndarray):
        return [read.tolist()]
    return [part.tolist() for part in (read.input_ids, read.lengths, read.labels) if part is not None]


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
