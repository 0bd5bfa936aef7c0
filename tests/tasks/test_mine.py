"""task=mine as a user runs it, against a brute force that shares no line with it."""

import errno
import json
import os
from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers.records import Records
from rankpo.errors import ConfigError
from rankpo.mining.pipeline import TooFewError
from rankpo.tasks.base import Task
from rankpo.tasks.vector_models import vector_model
from tests.runs import TINY, launch, train

WORDS = ["river", "stone", "cloud", "forest", "signal", "bridge", "lamp", "winter", "orchard", "engine"]
POOL = [f"{WORDS[n % 10]} {WORDS[(n * 3 + n // 10) % 10]} passage {n}" for n in range(40)]
ROWS = [
    {
        "query": f"{WORDS[n % 9]} {WORDS[n % 9 + 1]}",
        "positives": [POOL[n], POOL[n + 15]],
        "negatives": POOL[n : n + 30 : 4],
    }
    for n in range(10)  # the last row has the query of the first, and other positives
]
METHODS = {
    "top": (),
    "margin": ("mining.relative_margin=0.001", "mining.margin_against=max"),
    "absolute": ("mining.absolute_margin=0.0005", "mining.margin_against=mean"),
    "range": ("mining.range_min=3", "mining.range_max=9"),
    "retrieved": ("mining.range_min=3", "mining.range_max=9", "mining.range_counts=retrieved"),
    "bounds": ("mining.max_score=0.995", "mining.min_score=0.5"),
    "random sampling": ("mining.sampling=random",),
    "softmax": ("mining.sampling=softmax", "mining.temperature=0.01"),
    "cluster": ("mining.sampling=cluster", "mining.num_clusters=3"),
    "near duplicates": ("mining.near_duplicates=0.6",),
    "fused": ("mining=fused",),
    "minmax": ("mining=fused", "mining.fusion=minmax"),
    "bm25": ("mining=bm25",),
    "bm25 with model words": ("mining=bm25", "mining.bm25.tokenizer=model"),
    "bm25 by embeddings": ("mining=bm25", "mining.score_by=dense", "mining.relative_margin=0.0001"),
    "bm25 in clusters": ("mining=bm25", "mining.sampling=cluster"),
    "random": ("mining=random",),
    "random by embeddings": ("mining=random", "mining.score_by=dense", "mining.max_score=0.99"),
    "filled": ("mining.top_k=4", "mining.on_short=fill_random"),
    "relaxed": ("mining.max_score=0.9", "mining.on_short=relax"),
    "few uses": ("mining.max_uses=3",),
    "faiss": ("mining.backend=faiss",),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all: texts are encoded once."""
    return tmp_path_factory.mktemp("cache")


def options(path, cache, name, *overrides):
    mining = [] if any(item.startswith("mining=") for item in overrides) else ["mining=dense"]
    data = (*TINY, "task=mine", *mining, "datasets=[rankpo]", f"datasets.rankpo.path={path}", f"cache_dir={cache}")
    return (*data, f"exp_name={name.replace(' ', '_')}", "mining.num_negatives=5", *overrides)


def mine(path, cache, name, *overrides):
    """Records, meta records and statistics of the only file."""
    folder = train(*options(path, cache, name, *overrides)).run_dir
    read = [
        [json.loads(line) for line in (folder / file).read_text().splitlines()]
        for file in ("mined.jsonl", "mined.meta.jsonl")
    ]
    return *read, json.loads((folder / "statistics.json").read_text())["files"]["mined.jsonl"]


def positives_of(path):
    """By query, from the raw file."""
    known = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        known.setdefault(record["query"].strip(), set()).update(text.strip() for text in record["positives"])
    return known


def passages_of(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {text.strip() for record in records for text in [*record["positives"], *record["negatives"]]}


@pytest.mark.parametrize("method", METHODS)
def test_positives_are_never_negatives_and_negatives_come_from_the_pool(rows, cache, method):
    if method == "faiss":
        pytest.importorskip("faiss")
    check(rows, *mine(rows, cache, method, *METHODS[method]))


def check(path, mined, meta, statistics):
    """What holds for every method, from the raw file alone."""
    known, pool = positives_of(path), passages_of(path)
    assert {record["query"] for record in mined} == set(known)
    for record, source in zip(mined, meta, strict=True):
        assert set(record["positives"]) == known[record["query"]]
        assert not set(record["negatives"]) & known[record["query"]]
        assert set(record["negatives"]) <= pool
        assert len(set(record["negatives"])) == len(record["negatives"]) <= 5
        assert len(source["negatives"]) == len(record["negatives"])
    check_statistics(mined, meta, statistics)


def check_statistics(mined, meta, statistics):
    """Every number again, from the two files, by plain Python."""
    scores = [n["score"] for item in meta for n in item["negatives"] if n["score"] is not None]
    positives = [p["score"] for item in meta for p in item["positives"] if p["score"] is not None]
    uses = {}
    for record in mined:
        for text in record["negatives"]:
            uses[text] = uses.get(text, 0) + 1
    assert statistics["kept"] == sum(uses.values())
    assert statistics["most_uses"] == max(uses.values(), default=0)
    assert statistics["distinct_negatives"] == len(uses)
    assert statistics["queries"] == len(mined)
    assert statistics["short"] == sum(len(record["negatives"]) < 5 for record in mined)
    assert statistics["candidates"] == sum(item["candidates"] for item in meta)
    for step in statistics["removed"]:
        assert statistics["removed"][step] == sum(item["removed"][step] for item in meta)
    assert statistics["negative_mean"] == (pytest.approx(sum(scores) / len(scores)) if scores else None)
    assert statistics["positive_mean"] == (pytest.approx(sum(positives) / len(positives)) if positives else None)
    ranks = sorted(n["rank"] for item in meta for n in item["negatives"] if n["rank"] is not None)
    middle = (ranks[(len(ranks) - 1) // 2] + ranks[len(ranks) // 2]) / 2 if ranks else None
    assert (statistics["rank"] or {}).get("p50") == middle
    pairs = [
        (item["margin_from"], min(p["score"] for p in item["positives"]), n["score"])
        for item in meta
        for n in item["negatives"]
        if n["score"] is not None and item["margin_from"] is not None
    ]
    if pairs:
        gaps = sorted(high - score for high, _, score in pairs)
        middle = (gaps[(len(gaps) - 1) // 2] + gaps[len(gaps) // 2]) / 2
        assert statistics["gap"]["p50"] == pytest.approx(middle, abs=1e-6)
        assert statistics["hardest"][0]["gap"] == pytest.approx(gaps[0], abs=1e-6)
        above = sum(score > low for _, low, score in pairs) / len(pairs)
        assert statistics["above_weakest_positive"] == pytest.approx(above)
        assert sum(statistics["histogram"]["negatives"]) == len(scores)
        assert sum(statistics["histogram"]["positives"]) == len(positives)


def brute_force(path, cache, relative_margin, low, high):
    """Negatives by query: every product, sorted, positives out, 95 %-like bound on the largest positive, a slice."""
    experiment = compose(options(path, cache, "unused"))
    model = vector_model(experiment, Task().open(experiment))
    pool = sorted(passages_of(path))
    vectors = model.encode(pool)
    found = {}
    for query, known in positives_of(path).items():
        scores = dict(zip(pool, (vectors @ model.encode(query, "query")).tolist(), strict=True))
        bound = (1 - relative_margin) * max(scores[text] for text in known)
        allowed = [text for text in pool if text not in known and text != query and scores[text] <= bound]
        found[query] = sorted(allowed, key=lambda text: -scores[text])[low:high]
    return found


def test_bm25_finds_only_texts_that_share_a_word(rows, cache):
    mined, meta, statistics = mine(rows, cache, "words", "mining=bm25", "mining.num_negatives=40")
    assert statistics["candidates"] < len(mined) * statistics["texts"]
    for record, item in zip(mined, meta, strict=True):
        words = set(record["query"].split())
        found = {text for text in passages_of(rows) if words & set(text.split())}
        assert set(record["negatives"]) == found - positives_of(rows)[record["query"]]
        assert item["candidates"] == len(found)


def test_dense_with_a_margin_and_a_range_equals_brute_force(rows, cache):
    keys = ("mining.relative_margin=0.001", "mining.margin_against=max", "mining.range_min=1", "mining.range_max=5")
    mined, _, _ = mine(rows, cache, "brute", *keys)
    assert {record["query"]: record["negatives"] for record in mined} == brute_force(rows, cache, 0.001, 1, 5)


def test_lambdas_write_a_file_each_from_one_encoding(rows, cache):
    folder = train(*options(rows, cache, "sweep", "mining=rankpo", "mining.lambdas=[1,0.01]")).run_dir
    expected = [f"mined-lambda{value}{end}" for value in ("0.01", "1") for end in (".jsonl", ".meta.jsonl")]
    assert sorted(path.name for path in folder.iterdir()) == [*expected, "statistics.json"]
    files = json.loads((folder / "statistics.json").read_text())["files"]
    assert files["mined-lambda0.01.jsonl"]["rank"]["p50"] < files["mined-lambda1.jsonl"]["rank"]["p50"]
    example = next(iter(Records(name="m", path=str(folder / "mined-lambda1.jsonl")).examples()))
    assert sum(example.relevance) == 4, "both rows of the first query"


def test_an_own_corpus_that_lacks_positives(rows, cache, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"c{n}", "text": text}) + "\n" for n, text in enumerate(POOL[20:]))
    )
    for name in ("dense", "bm25"):
        mined, meta, _ = mine(
            rows,
            cache,
            f"corpus {name}",
            f"mining={name}",
            f"mining.corpus={tmp_path}/corpus.jsonl",
            "mining.max_score=1e9",
        )
        assert {text for record in mined for text in record["negatives"]} <= set(POOL[20:])
        assert all(n["id"].startswith("c") for item in meta for n in item["negatives"])
        assert all(p["score"] is not None for item in meta for p in item["positives"])
        assert any(not p["id"].startswith("c") for item in meta for p in item["positives"])


def test_a_run_is_a_source(rows, cache, tmp_path):
    _, meta, _ = mine(rows, cache, "for run")
    ids = {text: identity for text, identity in pool_ids(rows).items()}
    lines = [f"{meta[0]['id']} Q0 {ids[POOL[n]]} 1 {n / 100} x\n" for n in (39, 0, 33, 8)]
    (tmp_path / "run.trec").write_text("".join(lines))
    mined, meta, statistics = mine(rows, cache, "run", "mining=run", f"mining.run={tmp_path}/run.trec")
    assert mined[0]["negatives"] == [text for text in (POOL[33], POOL[8]) if text in ids]
    assert statistics["without_negatives"] == len(mined) - 1
    (tmp_path / "run.trec").write_text("someone Q0 something 1 0.5 x\n")
    with pytest.raises(ConfigError, match="have no query and document id in common"):
        mine(rows, cache, "run none", "mining=run", f"mining.run={tmp_path}/run.trec")


def pool_ids(path):
    from hashlib import sha256

    return {text: sha256(text.encode()).hexdigest()[:16] for text in passages_of(path)} | {POOL[39]: "not-there"}


class Scorer:
    """A reranker that prefers short texts: minus the length of the document."""

    def __init__(self):
        self.pairs = []

    def compute_score(self, pairs):
        self.pairs += pairs
        return [-float(len(document)) for _, document in pairs]


def test_a_cross_encoder_filters_orders_and_audits(rows, cache, monkeypatch, tmp_path):
    scorer = Scorer()
    monkeypatch.setattr("rankpo.tasks.work.mine.load_saved", lambda path, device: scorer)
    keys = (f"mining.cross_encoder={tmp_path}", "mining.score_by=cross_encoder", "mining.reorder=true")
    mined, meta, statistics = mine(
        rows, cache, "cross", *keys, "mining.absolute_margin=1", "mining.margin_against=min", "mining.audit_rows=3"
    )
    known = positives_of(rows)
    for record, item in zip(mined, meta, strict=True):
        longest = max(map(len, known[record["query"]]))
        assert [n["score"] for n in item["negatives"]] == [-len(text) for text in record["negatives"]]
        assert all(len(text) >= longest + 1 for text in record["negatives"])
        assert [len(text) for text in record["negatives"]] == sorted(map(len, record["negatives"]))
    assert statistics["audit"]["queries"] == min(3, sum(bool(record["negatives"]) for record in mined))
    assert statistics["audit"]["above_weakest_positive"] == 0
    assert all(query in known for query, _ in scorer.pairs)


def test_a_folder_that_is_no_reranker_is_named(rows, cache, monkeypatch, tmp_path):
    monkeypatch.setattr("rankpo.tasks.work.mine.load_saved", lambda path, device: object())
    with pytest.raises(ConfigError, match="is not a reranker"):
        mine(rows, cache, "wrong", f"mining.cross_encoder={tmp_path}", "mining.score_by=cross_encoder")


def test_inputs_and_earlier_outputs_are_not_overwritten(rows, cache, tmp_path):
    before = rows.read_bytes()
    with pytest.raises(ConfigError, match=r"would overwrite .*train\.jsonl, an input of the task"):
        mine(rows, cache, "over", f"task.output={rows}", "overwrite=true")
    assert rows.read_bytes() == before
    corpus = tmp_path / "mined.meta.jsonl"
    corpus.write_text(json.dumps({"text": "a text"}) + "\n")
    with pytest.raises(ConfigError, match=r"would overwrite .*mined\.meta\.jsonl, an input of the task"):
        mine(rows, cache, "over", f"task.output={tmp_path}/mined.jsonl", f"mining.corpus={corpus}", "overwrite=true")
    mine(rows, cache, "twice")
    with pytest.raises(ConfigError, match="already exists; set overwrite=true"):
        mine(rows, cache, "twice")
    mine(rows, cache, "twice", "overwrite=true")


@pytest.mark.parametrize("full", ["mined.jsonl", "mined.meta.jsonl", "statistics.json"])
def test_the_same_command_goes_on_after_a_full_disk(rows, cache, monkeypatch, full):
    """The disk fills at one of the three files; the files that are there are written again, and whole."""
    plain = Path.replace

    def until_full(self, target):
        if Path(target).name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return plain(self, target)

    name = f"full {full}"
    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(Path, "replace", until_full)
        mine(rows, cache, name)
    folder = cache / name.replace(" ", "_")
    assert not (folder / full).exists() and not list(folder.glob("*.tmp-*"))
    assert mine(rows, cache, name) == mine(rows, cache, "undisturbed", "overwrite=true")
    assert not list(folder.glob(".*"))
    with pytest.raises(ConfigError, match="already exists"):
        mine(rows, cache, name)


def test_too_few_is_an_error_if_asked_for(rows, cache):
    with pytest.raises(TooFewError, match=r"has 0 of 5 negatives; widen mining\.top_k"):
        mine(rows, cache, "short", "mining.max_score=-2", "mining.on_short=error")


def test_two_processes_and_another_hash_seed_write_the_same_files(rows, cache, tmp_path):
    """Processes of `launch` have a hash seed of their own, unless the environment sets one."""
    sampling = ("mining=fused", "mining.sampling=cluster", "mining.near_duplicates=0.7", "mining.on_short=fill_random")
    folder = train(*options(rows, tmp_path / "one", "one", *sampling)).run_dir
    done = launch(*options(rows, tmp_path / "two", "one", *sampling), processes=2)
    assert done.returncode == 0, done.stderr
    for name in ("mined.jsonl", "mined.meta.jsonl", "statistics.json"):
        assert (tmp_path / "two/one" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("method", METHODS)
def test_methods_on_the_real_sample(shared_data, cache, method):
    """The file has 10 rows, 28 positives, 124 distinct texts."""
    if method == "faiss":
        pytest.importorskip("faiss")
    path = shared_data / "rankpo" / "contrastive.jsonl"
    mined, meta, statistics = mine(path, cache, f"real {method}", *METHODS[method])
    check(path, mined, meta, statistics)
    assert (statistics["queries"], statistics["texts"]) == (10, 124)
    assert sum(len(record["positives"]) for record in mined) == 28


def test_brute_force_on_the_real_sample(shared_data, cache):
    path = shared_data / "rankpo" / "contrastive.jsonl"
    keys = ("mining.relative_margin=0.001", "mining.margin_against=max", "mining.range_min=2", "mining.range_max=6")
    keys += ("mining.top_k=200",)
    mined, _, _ = mine(path, cache, "real brute", *keys)
    assert {record["query"]: record["negatives"] for record in mined} == brute_force(path, cache, 0.001, 2, 6)
