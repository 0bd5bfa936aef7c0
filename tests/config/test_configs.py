"""Every yaml of every group is composed and built; the files on disk are counted, so that none is forgotten."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from rankpo.config.compose import compose
from rankpo.config.construct import build
from rankpo.data.generated.jobs import write_jobs
from rankpo.runs import processes
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.assemble import assemble

CONFIG = Path(__file__).resolve().parents[2] / "config"
LINKED = ("eval_datasets", "replay_datasets", "replay_dataloader")  # the same files under another name


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))


def test_every_folder_is_covered_by_a_test_below():
    groups = {path.name for path in CONFIG.iterdir() if path.is_dir() and not path.is_symlink()}
    assert groups == {*COVERED}
    assert {path.name for path in CONFIG.iterdir() if path.is_symlink()} == {*LINKED}


COVERED = {
    "task", "loss", "model", "kind", "datasets", "trainer", "dataloader", "optimizer", "scheduler", "tracker",
    "experiment", "debug", "mining", "judge", "search",
}  # fmt: skip

# which model and data the losses that choose a kind are shown with
SHOWN_WITH = {
    "embedding": ("tiny_bert", "toy_pairs"),
    "hybrid": ("tiny_bert", "toy_contrastive"),
    "reranker": ("tiny_bert", "toy_graded"),
    "listwise": ("tiny_llama_wide", "toy_lists"),
    "causal_lm": ("tiny_pythia", "toy_chat"),
    "reward_model": ("tiny_pythia", "toy_chat"),
}
SIZES = {
    "bert": "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64",
    "llama": "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 64",
}


def trainer_of(*overrides: str):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    experiment = compose(overrides)
    return assemble(experiment, processes.make_accelerator("fp32"), MetricsLogger(main=False))


def kind_of(loss: str) -> str:
    """The kind that a loss's yaml chooses."""
    (chosen,) = re.findall(r"override /kind: (\w+)", (CONFIG / "loss" / f"{loss}.yaml").read_text())
    return chosen


@pytest.mark.parametrize("loss", options("loss"))
def test_losses(tmp_path, loss):
    """Each loss with its own trainer and loader: one update whose loss and gradient are finite."""
    model, dataset = SHOWN_WITH[kind_of(loss)]
    choices = (f"loss={loss}", f"model={model}", f"datasets=[{dataset}]")
    trainer = trainer_of(*choices, "trainer.batch_size=4", f"cache_dir={tmp_path}")
    trainer.policy.train()
    trainer.train_step(trainer.prepare(0))
    assert trainer.state.step == 1


ENCODERS = (
    *("minilm", "modernbert", "bge_m3", "e5", "bge_reranker", "modernbert_reranker", "tiny_bert"),
    *("colbert", "gte_moderncolbert", "jina_colbert", "splade"),
)
OF_DECODERS = ("causal_lm", "reward_model", "listwise")
OF_ENCODERS = ("sparse",)
OF_VECTORS = ("late_interaction", "sparse", "hybrid")  # These kinds read checkpoints as kind=embedding does.
IN_CI = ("base", "minilm", "modernbert", "bge_m3", "llama", "qwen3_embedding", "colbert", "splade")
PAIRS = [
    pytest.param(
        model, kind, marks=[pytest.mark.slow] if kind not in ("embedding", "causal_lm") and model not in IN_CI else []
    )
    for model in options("model")
    for kind in options("kind")
    if not (kind in OF_DECODERS if model in ENCODERS else kind in OF_ENCODERS)
]


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_models_as_every_kind(model, kind):
    """Each checkpoint's settings as each kind, on a tiny random backbone: built, it answers one call of its kind."""
    family = "bert" if model in ENCODERS else "llama"
    weights = f"++model.random={{model_type: {family}, {SIZES[family]}, max_position_embeddings: 8192}}"
    words = ["model.yes_word=y", "model.no_word=n", "model.prompt=plain", "model.window=10", "model.stride=5"]
    keys = {"reranker": words[:2], "listwise": words[2:]}.get(kind, [])
    choices = [f"model={model}", f"kind={kind}", weights, "model.load_from=null", "model.name_or_path=null", *keys]
    config = compose([*choices, "task=report", "task.runs=[.]"]).model
    say = lambda message: None  # noqa: E731
    assert config.kind == kind
    policy = config.build(config.open_inputs(say), say)
    if kind == "embedding":
        assert policy.encode(["a text", "another"], role="query").shape == (2, 32)
    elif kind == "late_interaction":
        assert [rows.shape[1] for rows in policy.encode(["a text", "another"], role="query")] == [128, 128]
    elif kind in ("sparse", "hybrid"):
        assert len(policy.predict([("query", "a text"), ("query", "another")])) == 2
    elif kind == "reranker":
        assert len(policy.compute_score([("query", "a text"), ("query", "another")])) == 2
    elif kind == "listwise":
        assert {item["corpus_id"] for item in policy.rank("a query", ["a text", "another"])} == {0, 1}
    elif kind == "reward_model":
        assert policy.rewards(["a prompt"], ["a completion"]).shape == (1,)
    else:
        assert policy.logps(["a prompt"], ["a completion"]).shape == (1,)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_jobs(folder, num_profiles=60, num_posts=4)
    return folder


CHAT = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}]
SAMPLES = {  # a record of the form that each hub or chat data set has
    "chat": CHAT,
    "hh": [{"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."}],
    "shp": [
        {
            "post_id": "p", "history": "Sky?", "human_ref_A": "Blue.", "human_ref_B": "Green.", "labels": 1,
            "score_A": 9, "score_B": 2, "score_ratio": 4.5,
        }
    ],
    "ultrabin": [
        {
            "prompt": "Sky?",
            "chosen": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}],
        }
    ],
    "imdb": [{"text": "A film of many words that goes on for a while and ends well.", "label": 1}],
    "oasst": [
        {"message_id": "1", "parent_id": None, "text": "Sky?", "role": "prompter", "lang": "en", "rank": None},
        {"message_id": "2", "parent_id": "1", "text": "Blue.", "role": "assistant", "lang": "en", "rank": 0},
        {"message_id": "3", "parent_id": "1", "text": "Green.", "role": "assistant", "lang": "en", "rank": 1},
    ],
    "ranked_lists": [{"query": "Sky?", "passages": ["Green.", "Blue."], "ranking": [1, 0]}],
    "rank_zephyr": [
        {
            "conversations": [
                {"from": "human", "value": "I will provide you with 2 passages, each indicated by numerical identifier [].\n"
                 "Rank the passages based on their relevance to the search query: sky.\n\n[1] Green.\n[2] Blue.\n\n"
                 "Search Query: sky.\nRank the 2 passages above."},
                {"from": "gpt", "value": "[2] > [1]"},
            ]
        }
    ],
}  # fmt: skip


BY_NAME = ("nanobeir", "hub_collection", "ir_datasets")  # to evaluate on; tests/data/test_named_collections.py


@pytest.mark.parametrize("dataset", [name for name in options("datasets") if name not in BY_NAME])
def test_datasets(dataset, files, tmp_path):
    """Each dataset yields examples; those of files and hubs from local files of their form."""
    given = []
    if dataset in SAMPLES:
        path = tmp_path / "sample.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in SAMPLES[dataset]))
        hub = "hub:" in (CONFIG / "datasets" / f"{dataset}.yaml").read_text()
        given = [f"datasets.{dataset}.path={path}", *([f"datasets.{dataset}.hub=null"] if hub else [])]
    elif dataset == "hub":
        datasets = pytest.importorskip("datasets")
        datasets.load_dataset("json", data_files=str(files / "contrastive.jsonl"), cache_dir=str(tmp_path / "hf"))[
            "train"
        ].save_to_disk(str(tmp_path / "saved"))
        given = [f"datasets.hub.name={tmp_path}/saved"]
    elif dataset in ("beir", "jsonl", "rankpo"):
        given = [f"datasets.{dataset}.path={files / 'test' if dataset == 'beir' else files / 'contrastive.jsonl'}"]
    elif dataset == "corpus":
        (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        (tmp_path / "queries.jsonl").write_text('{"query": "q", "positives": [1]}\n')
        given = [f"datasets.corpus.{part}_file={tmp_path}/{part}.jsonl" for part in ("queries", "corpus")]
    elif dataset == "collection":
        (tmp_path / "triples.tsv").write_text("query\tpositive\tnegative\n")
        given = [f"datasets.collection.path={tmp_path}"]
    (made,) = compose([f"datasets=[{dataset}]", *given, "task=report", "task.runs=[.]"]).datasets
    assert next(iter(made.examples())).candidates
    assert made.fingerprint()


NEEDS_GPU = set() if torch.cuda.is_available() else {"adamw_8bit_paged"}


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "tracker"])
def test_small_groups(tmp_path, group):
    for option in set(options(group)) - NEEDS_GPU:
        trainer = trainer_of(
            "model=tiny_bert", "datasets=[toy_contrastive]", f"{group}={option}", f"cache_dir={tmp_path}"
        )
        trainer.policy.train()
        trainer.train_step(trainer.prepare(0))


def test_trainers_and_loaders_are_chosen_by_some_loss():
    """A yaml that no loss chooses could only be reached by hand, past the checks."""
    chosen = "\n".join(path.read_text() for path in (CONFIG / "loss").glob("*.yaml"))
    for group in ("trainer", "dataloader"):
        unused = [name for name in options(group) if f"override /{group}: {name}" not in chosen and name != "basic"]
        assert unused == []


TASK_KEYS = {
    "evaluate": ("eval_datasets=[jobs_test]",),
    "report": ("task.runs=[.]",),
    "serve": ("task.runs=[.]",),
    "rerank": ("task.requests=launch.py", "model=tiny_bert"),
    "sample": ("model=tiny_pythia", "datasets=[toy_chat]"),
    "export": ("task.run=.",),
    "push": ("task.folder=SAVED", "task.repo=me/x"),
    "frontier": ("task.priors=[.]",),
    "mteb": ("task.tasks=[SciFact]",),
}


@pytest.mark.parametrize("task", options("task"))
def test_tasks(task, monkeypatch, tmp_path):
    monkeypatch.chdir(CONFIG.parent)
    if task == "mteb":
        pytest.importorskip("mteb")
    (tmp_path / "rankpo.json").touch()
    keys = [key.replace("SAVED", str(tmp_path)) for key in TASK_KEYS.get(task, ())]
    assert callable(compose([f"task={task}", *keys]).task)


@pytest.mark.parametrize("option", options("mining"))
def test_minings(option, monkeypatch):
    monkeypatch.chdir(CONFIG.parent)
    given = {"run": ["mining.run=README.md"], "positive_aware": []}.get(option, [])
    assert compose(["task=mine", f"mining={option}", *given]).mining


JUDGE_KEYS = {
    "openai": ("judge.base_url=http://localhost/v1", "judge.model=m"),
    "local": ("judge.path=x/y",),
    "scores": ("judge.path=config",),
}


@pytest.mark.parametrize("option", options("judge"))
def test_judges(option, monkeypatch):
    monkeypatch.chdir(CONFIG.parent)
    assert compose(["task=annotate", f"judge={option}", *JUDGE_KEYS.get(option, ())]).judge.name


@pytest.mark.parametrize("option", options("search"))
def test_searches(option):
    """Each chooses its sweeper, and has the keys of its settings."""
    keys = [] if option == "none" else ["search.metric=dev/ndcg@10"]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        config = hydra_compose("config", overrides=[f"search={option}", *keys], return_hydra_config=True)
    assert ("rankpo_search" in config.hydra.sweeper._target_) == (option != "none")
    if option != "none":
        node = OmegaConf.create({**OmegaConf.to_container(config.search), "storage": "search.journal"})
        assert build(OmegaConf.to_container(node), "search").metric == "dev/ndcg@10"


def keys_of(node: object) -> set[str]:
    """All keys of a yaml, without Hydra's own and those of free mappings: transformers', peft's, an HTTP body's."""
    if not isinstance(node, dict):
        return set()
    free = ("random", "peft", "extra", "vllm", "where", "price", "params", "hydra", "defaults", "_target_")
    own = {key: value for key, value in node.items() if key not in free}
    return {str(key) for key in own}.union(*map(keys_of, own.values()))


def test_every_key_is_read():
    """A key that a constructor takes and no line uses, as an attribute or by name, would be a knob without effect."""
    sources = [path.read_text() for path in (CONFIG.parent / "rankpo").rglob("*.py")]
    used: set[str] = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(node.value)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):  # an argument that is no field
            used.add(node.id)
    found: set[str] = set()
    for path in CONFIG.rglob("*.yaml"):
        if not {"experiment", "debug", "optimizer"} & set(path.parts):  # of other groups; torch's
            found |= keys_of(yaml.safe_load(path.read_text()))
    assert len(found) > 200
    named = {path.stem for group in ("datasets", "judge/template") for path in (CONFIG / group).glob("*.yaml")}
    assert found - used - named == set()


RECIPES = [f"{group}={name}" for group in ("experiment", "debug") for name in options(group)]


@pytest.mark.parametrize("option", RECIPES)
def test_recipes(option, tmp_path):
    """Each published or documented run passes every check; what its user must give is a path."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        missing = sorted(OmegaConf.missing_keys(hydra_compose("config", overrides=[option])))
    assert all(key.endswith(".path") for key in missing)
    (tmp_path / "records.jsonl").touch()
    assert compose([option, *(f"{key}={tmp_path}/records.jsonl" for key in missing)]).exp_name
