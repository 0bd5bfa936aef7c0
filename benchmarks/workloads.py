"""The texts of the benchmarks: real samples where they lie beside the checkout, the job-talent world where not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.data.generated.jobs import Jobs
from rankpo.data.readers.records import Records

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Row:
    """A query and its candidates: the positive, or the chosen one, first."""

    query: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """Rows, and where they come from in words."""

    rows: list[Row]
    origin: str


def long_pairs(count: int, words: int = 2200) -> Workload:
    """Preference pairs with long passages. words: of the longest generated passage, if there is no sample."""
    path = SAMPLES / "rankpo" / "preferences.jsonl"
    if path.exists():
        examples = Records(name="rankpo", path=str(path), limit=count).examples()
        rows = [Row(_text(item.query), item.candidates) for item in examples]
        return Workload(rows, "RankPO's sample of preferences")
    rng = random.Random("long pairs")
    texts = _endless(profile.text for profile in Jobs(name="jobs", num_profiles=2000).profiles)
    rows = [
        Row(
            _of_length(texts, rng.randint(words // 8, words // 3)), (_of_length(texts, words), _of_length(texts, words))
        )
        for _ in range(count)
    ]
    return Workload(rows, "generated long texts")


def web_search(count: int, negatives: int = 5) -> Workload:
    """Queries with a positive and hard negatives of mixed lengths."""
    path = SAMPLES / "t2ranking" / "t2rank_100.jsonl"
    if not path.exists():
        return job_posts(count, negatives)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    usable = [record for record in records if len(set(record["neg"]) - {record["pos"][0]}) >= negatives]
    rows = []
    for record in usable[:count]:
        others = [text for text in dict.fromkeys(record["neg"]) if text != record["pos"][0]]
        rows.append(Row(record["query"], (record["pos"][0], *others[:negatives])))
    return Workload(rows, "T2Ranking's sample")


def job_posts(count: int, negatives: int = 5) -> Workload:
    """Short and very uneven texts: posts, titles and profiles of 5 to 300 tokens, one in two a title alone."""
    rng = random.Random("job posts")
    rows = []
    for example in Jobs(name="jobs", num_posts=count + count // 4).examples():
        query = _uneven(rng, _text(example.query))
        positives = [t for t, r in zip(example.candidates, example.relevance, strict=True) if r > 0]
        others = [t for t, r in zip(example.candidates, example.relevance, strict=True) if r == 0]
        texts = [_uneven(rng, text) for text in (rng.choice(positives), *rng.sample(others, negatives))]
        if len(set(texts)) == negatives + 1:
            rows.append(Row(query, tuple(texts)))
    return Workload(rows[:count], "the job-talent world, titles and profiles")


def mixed_texts(count: int) -> Workload:
    """Texts to encode, as rows without candidates: real passages first, then profiles, shuffled."""
    passages = [text for row in web_search(100).rows for text in row.candidates]
    profiles = [profile.text for profile in Jobs(name="jobs", num_profiles=count).profiles]
    texts = list(dict.fromkeys(passages[: count // 2] + profiles))[:count]
    random.Random("mixed").shuffle(texts)
    return Workload([Row(text, ()) for text in texts], "passages and profiles, half each")


def long_lists(count: int, size: int) -> Workload:
    """Queries with `size` passages each, in random order: what a first stage hands to a listwise reranker."""
    rng = random.Random("long lists")
    queries = [row.query for row in web_search(count).rows]
    texts = mixed_texts(4 * size)
    passages = [row.query for row in texts.rows]
    rows = [Row(queries[number % len(queries)], tuple(rng.sample(passages, size))) for number in range(count)]
    return Workload(rows, texts.origin)


def write_pairs(path: Path, rows: Sequence[Row]) -> Path:
    """RankPO's preference records."""
    records = (
        {"query": row.query, "passage1": row.candidates[0], "passage2": row.candidates[1], "preferred": "A"}
        for row in rows
    )
    return _write(path, ({**record, "confidence_score": 100} for record in records))


def write_contrastive(path: Path, rows: Sequence[Row]) -> Path:
    """RankPO's contrastive records."""
    return _write(
        path,
        ({"query": row.query, "positives": [row.candidates[0]], "negatives": list(row.candidates[1:])} for row in rows),
    )


def minilm(folder: Path, tiny: bool = False) -> str:
    """The folder of MiniLM's weights; with `tiny`, of a one-layer BERT with random ones and MiniLM's tokenizer."""
    from rankpo.models.loading import resolve

    if not tiny:
        return resolve(MINILM).path
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return _write_random(folder / "bert", "bert", **sizes)


def masked_minilm(folder: Path, tiny: bool = False) -> str:
    """MiniLM with a new masked-language head, the same for all sides."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

    source = minilm(folder, tiny)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source)
    model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    body = AutoModel.from_pretrained(source, dtype=torch.float32).state_dict()
    model.base_model.load_state_dict({name: tensor for name, tensor in body.items() if "pooler" not in name})
    model.save_pretrained(folder / "masked")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "masked")
    return str(folder / "masked")


def llama(folder: Path, tiny: bool = False) -> str:
    """A folder with a random Llama of 11 M parameters, 7.8 M of them embeddings, and MiniLM's tokenizer."""
    layers, hidden, intermediate, heads = (1, 32, 64, 2) if tiny else (4, 256, 688, 4)
    return _write_random(
        folder / "llama",
        "llama",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )


def language_model(folder: Path, tiny: bool = False) -> str:
    """The same Llama with an output head, 19 M parameters; the tokenizer's separator is its end token."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(llama(folder, tiny))
    config = AutoConfig.from_pretrained(path)
    config.initializer_range = 0.1  # logits that differ: with the usual 0.02 rounding would choose between them
    _save_random(path, config, AutoModelForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(path)
    return str(path)


def cross_encoder(folder: Path, tiny: bool = False) -> str:
    """MiniLM with a new head of one label, the same for all sides."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    source = minilm(folder, tiny)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(AutoModel.from_pretrained(source, dtype=torch.float32).state_dict())
    model.save_pretrained(folder / "cross_encoder")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "cross_encoder")
    return str(folder / "cross_encoder")


def _write_random(folder: Path, model_type: str, **sizes: int) -> str:
    from transformers import AutoConfig, AutoModel

    from rankpo.models.loading import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(MINILM))
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    tokenizer.model_max_length = config.max_position_embeddings
    _save_random(folder, config, AutoModel)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _save_random(folder: Path, config: Any, family: Any) -> None:
    import torch

    torch.manual_seed(0)
    family.from_config(config, dtype=torch.float32).save_pretrained(folder)


def _write(path: Path, records: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def _endless(texts: Iterable[str]) -> Iterator[str]:
    kept = list(texts)
    while True:
        yield from kept


def _of_length(texts: Iterator[str], words: int) -> str:
    parts: list[str] = []
    while len(parts) < words:
        parts.extend(next(texts).split())
    return " ".join(parts[:words])


def _text(query: object) -> str:
    """A query that is a plain text: none of these data sets has conversations."""
    if not isinstance(query, str):
        raise TypeError(f"a query must be a text here, got {type(query).__name__}")
    return query


def _title(text: str) -> str:
    return text.split(". ", 1)[0]


def _uneven(rng: random.Random, text: str) -> str:
    return _title(text) if rng.random() < 0.5 else text
