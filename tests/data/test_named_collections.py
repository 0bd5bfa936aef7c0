"""Collections by name, on tiny local copies in the layouts of their repositories."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers.beir import Beir
from rankpo.data.readers.named_collections import NANO_SETS, HubCollection, IrDatasets, NanoBeir
from rankpo.errors import ConfigError
from rankpo.tasks.evaluators import make_evaluators
from tests.runs import TINY, train

datasets = pytest.importorskip("datasets")
CORPUS = {"d1": "the red apple", "d2": "a blue house", "d3": "a green tree", "d4": ""}
QUERIES = {"q1": "red fruit", "q2": "blue home"}
QRELS = [("q1", "d1", 2), ("q1", "d3", 1), ("q2", "d2", 1)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    lines = ["---", "configs:"]
    for config, files in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for split, path in files.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def texts(of: dict[str, str], title: bool = False, key: str = "_id") -> list[dict]:
    return [{key: name, **({"title": f"title {name}"} if title else {}), "text": text} for name, text in of.items()]


def judgements(graded: bool = True) -> list[dict]:
    return [
        {"query-id": q, "corpus-id": d, **({"score": grade} if graded else {})}
        for q, d, grade in QRELS
        if graded or grade
    ]


def mteb_copy(folder: Path, before: str = "", key: str = "_id", qrels: str = "default") -> Path:
    """As mteb/scifact (`_id`, configs corpus, queries, default) and as newer ones (`id`, `en-corpus`, …)."""
    parquet(folder / "corpus" / "a.parquet", texts(CORPUS, title=True, key=key))
    parquet(folder / "queries" / "a.parquet", texts(QUERIES, key=key))
    parquet(folder / "qrels" / "test.parquet", judgements())
    card(
        folder,
        {
            f"{before}{qrels}": {"test": "qrels/test.parquet"},
            f"{before}corpus": {"corpus" if not before else "test": "corpus/*.parquet"},
            f"{before}queries": {"queries" if not before else "test": "queries/*.parquet"},
        },
    )
    return folder


def as_dicts(collection) -> tuple:
    return dict(collection.corpus()), dict(collection.queries()), {q: dict(j) for q, j in collection.qrels().items()}


def test_the_form_of_mteb_on_the_hub(tmp_path):
    whole = {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}}
    plain = HubCollection(name=str(mteb_copy(tmp_path / "plain")), document_format="{text}")
    assert plain.name == "plain" and as_dicts(plain) == (CORPUS, QUERIES, whole)
    titled = HubCollection(name="mteb/x", path=str(tmp_path / "plain"), alias="x")
    assert titled.name == "x" and dict(titled.corpus())["d1"] == "title d1 the red apple"
    newer = mteb_copy(tmp_path / "newer", before="en-", key="id", qrels="qrels")
    assert as_dicts(HubCollection(name=str(newer), config="en", document_format="{text}")) == as_dicts(plain)
    fractions = [{**row, "score": 0.5} for row in judgements()]
    parquet(mteb_copy(tmp_path / "half") / "qrels" / "test.parquet", fractions)
    with pytest.raises(ValueError, match=r"half\[0\]: the grade 0\.5 is not a whole number"):
        HubCollection(name=str(tmp_path / "half")).qrels()
    with pytest.raises(ValueError, match=r"split=dev: the qrels of .* have no such split \(found: test\)"):
        HubCollection(name=str(tmp_path / "plain"), split="dev").qrels()
    with pytest.raises(ValueError, match=r"has no config corpus \(found: en-qrels, en-corpus, en-queries\)"):
        dict(HubCollection(name=str(newer)).corpus())


def test_a_set_of_beir_by_its_name(tmp_path, monkeypatch):
    """The hub's BeIR has the judgements in a repository of their own."""
    (tmp_path / "BeIR").mkdir()
    parquet(tmp_path / "BeIR/scifact/corpus/corpus.parquet", texts(CORPUS, title=True))
    parquet(tmp_path / "BeIR/scifact/queries/queries.parquet", texts(QUERIES))
    card(
        tmp_path / "BeIR/scifact",
        {"corpus": {"corpus": "corpus/*.parquet"}, "queries": {"queries": "queries/*.parquet"}},
    )
    parquet(tmp_path / "BeIR/scifact-qrels/test.parquet", judgements())
    card(tmp_path / "BeIR/scifact-qrels", {"default": {"test": "test.parquet"}})
    monkeypatch.chdir(tmp_path)  # where the name of the repository is that of a folder
    found = as_dicts(Beir(name="scifact", document_format="{text}"))
    assert found == (CORPUS, QUERIES, {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}})
    with pytest.raises(ConfigError, match=r"path is not set, and name=beir is no set of BEIR"):
        compose([*TINY, "loss=contrastive", "eval_datasets=[beir]"])


def nano_copy(folder: Path, sets=NANO_SETS) -> Path:
    """As sentence-transformers/NanoBEIR-en: the splits of corpus, queries and qrels are the sets."""
    for name in sets:
        parquet(folder / "corpus" / f"{name}.parquet", texts(CORPUS))
        parquet(folder / "queries" / f"{name}.parquet", texts(QUERIES))
        parquet(folder / "qrels" / f"{name}.parquet", judgements(graded=False))
    card(folder, {part: {name: f"{part}/{name}.parquet" for name in sets} for part in ("corpus", "queries", "qrels")})
    return folder


def test_nanobeir_and_its_mean(tmp_path):
    chosen = NANO_SETS[:2]
    copy = nano_copy(tmp_path / "nano", chosen)
    keys = (*TINY, "loss=contrastive", "eval_datasets=[nanobeir]", f"eval_datasets.nanobeir.path={copy}")
    keys = (*keys, f"eval_datasets.nanobeir.only=[{','.join(chosen)}]", f"cache_dir={tmp_path}/cache")
    experiment = train(*keys, "task=evaluate", "exp_name=e", f"task.output={tmp_path}/out")
    assert [data.name for data in experiment.eval_datasets] == list(chosen)
    values = [
        json.loads((tmp_path / "out" / "model" / name / "metrics.json").read_text())["metrics"]["ndcg@10"]
        for name in chosen
    ]
    mean = json.loads((tmp_path / "out" / "model" / "means.json").read_text())
    assert mean["nanobeir/ndcg@10"] == pytest.approx(sum(values) / 2)
    # the texts without content are left out, and judgements without scores are 1
    first = experiment.eval_datasets[0]
    assert "d4" not in dict(first.corpus()) and first.qrels()["q1"] == {"d1": 1, "d3": 1}
    names = [evaluator.name for evaluator in make_evaluators(compose([*keys]), ["ndcg@10"], lambda line: None)]
    assert names == list(chosen) and len(NanoBeir().sets()) == len(NANO_SETS) == 13
    with pytest.raises(ConfigError, match=r"nanobeir: NanoBeir stands for sets to evaluate on"):
        compose([*TINY, "loss=contrastive", "datasets=[nanobeir]"])


def test_nanobeir_from_a_folder_of_each_set(tmp_path):
    """As the repositories zeta-alpha-ai/NanoMSMARCO, …, side by side."""
    folder = tmp_path / "NanoNQ"
    for part, rows in (("corpus", texts(CORPUS)), ("queries", texts(QUERIES)), ("qrels", judgements(graded=False))):
        parquet(folder / part / "train-00000-of-00001.parquet", rows)
    card(folder, {part: {"train": f"{part}/train-*"} for part in ("corpus", "queries", "qrels")})
    (only,) = NanoBeir(path=str(tmp_path), only=["NanoNQ"]).sets()
    assert as_dicts(only)[1:] == (QUERIES, {"q1": {"d1": 1, "d3": 1}, "q2": {"d2": 1}})


def test_nanobeir_measures_what_sentence_transformers_measures(tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator

    import rankpo

    copy = nano_copy(tmp_path / "nano", NANO_SETS[:1])
    train(*TINY, "loss=contrastive", "datasets=[toy_contrastive]", f"cache_dir={tmp_path}/cache", "exp_name=t")
    final = tmp_path / "cache" / "t" / "FINAL"
    evaluate = (*TINY, "task=evaluate", f"model.load_from={final}", "model.random=null", f"cache_dir={tmp_path}/cache")
    keys = (
        "eval_datasets=[nanobeir]",
        f"eval_datasets.nanobeir.path={copy}",
        "eval_datasets.nanobeir.only=[NanoArguAna]",
    )
    train(*evaluate, *keys, "exp_name=e", f"task.output={tmp_path}/out")
    own = json.loads((tmp_path / "out" / "model" / "NanoArguAna" / "metrics.json").read_text())["metrics"]
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(final), device="cpu")
    theirs = NanoBEIREvaluator(dataset_names=["arguana"], dataset_id=str(copy))(model)
    assert own["ndcg@10"] == pytest.approx(theirs["NanoArguAna_cosine_ndcg@10"], abs=1e-6)
    assert own["mrr@10"] == pytest.approx(theirs["NanoArguAna_cosine_mrr@10"], abs=1e-6)
    assert rankpo.load(final) is not None


def test_the_catalogue_of_ir_datasets(tmp_path):
    catalogue = pytest.importorskip("ir_datasets")
    (tmp_path / "docs.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in CORPUS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in QUERIES.items()))
    (tmp_path / "qrels").write_text("".join(f"{q} 0 {d} {grade}\n" for q, d, grade in QRELS))
    files = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels"}
    made = catalogue.create_dataset(**{key: str(tmp_path / name) for key, name in files.items()})
    catalogue.registry.register("rankpo-test/tiny", made)
    found = IrDatasets(name="rankpo-test/tiny", document_format="{text}")
    assert found.name == "rankpo-test_tiny"
    assert as_dicts(found) == (CORPUS, QUERIES, {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}})
    named = IrDatasets(name="rankpo-test/tiny", text_fields=["doc_id", "text"], document_format="{text}")
    assert dict(named.corpus())["d1"] == "d1 the red apple" and named.fingerprint() != found.fingerprint()
    with pytest.raises(ValueError, match="name=nothing is not in the catalogue"):
        IrDatasets(name="nothing")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    monkeypatch.setattr("rankpo.data.readers.named_collections.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rankpo\[ir_datasets\]'"):
        IrDatasets(name="beir/scifact/test")
