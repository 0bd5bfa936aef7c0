"""Nothing that is loaded can run code, nothing foreign is called by a config, no secret is written down."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from rankpo.config.compose import compose
from rankpo.config.construct import locate
from rankpo.config.guard import foreign
from rankpo.errors import ConfigError
from rankpo.judges.base import JudgeStopped
from rankpo.judges.server import ServerJudge
from rankpo.judges.templates import Template
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.folders import MANIFEST, checksum
from tests.cli.test_launch import stopped
from tests.judges.server import Handler, serving
from tests.runs import RANKPO, TINY, train
from tests.starts import ROOT

SOURCES = [ROOT / "launch.py", *(path for name in ("rankpo", "hydra_plugins") for path in (ROOT / name).rglob("*.py"))]
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
SECRET = "hf_ThisIsASecretThatNobodyMaySee123"


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.place,))


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(item.value) for item in call.keywords if item.arg == name), None)


def faults(source: str) -> list[str]:
    """What in a source could run code that comes with data."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLES]
    for name, call in calls(tree):
        if name in ("torch.load", "torch.save") and keyword(call, "weights_only") != "True":
            found.append(name)
        if name in ("np.load", "numpy.load", "np.save") and keyword(call, "allow_pickle") != "False":
            found.append(name)
        if name in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "os.system") or keyword(call, "shell"):
            found.append(name)
        model = name.endswith(".from_pretrained") and not name.startswith(("AutoTokenizer", "AutoConfig"))
        if model and keyword(call, "use_safetensors") != "True":
            found.append(name)
    return found


def test_no_source_loads_pickles_or_runs_text():
    assert len(SOURCES) > 140
    found = {str(path.relative_to(ROOT)): problems for path in SOURCES if (problems := faults(path.read_text()))}
    # merges what its caller was given, with use_safetensors among it; peft takes .bin: `adapters_only_as_safetensors`
    assert found == {
        "rankpo/models/adapting.py": ["PeftModel.from_pretrained"],
        "rankpo/models/loading.py": ["PeftModel.from_pretrained"],
        "rankpo/models/reranker/families.py": ["CLASSIFIER.from_pretrained"],
        "rankpo/models/sparse/loading.py": ["AutoModelForMaskedLM.from_pretrained"],
    }


@pytest.mark.parametrize(
    "line",
    [
        "import joblib",
        "from pickle import loads",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "yaml.load(file)",
        "AutoModel.from_pretrained(folder)",
    ],
)
def test_the_search_finds(line):
    assert len(faults(line)) == 1


def test_a_pickle_in_a_text_store_is_not_opened(tmp_path):
    """Not even where the manifest says that it is what was written."""
    train(*RANKPO, "trainer.max_steps=1", "exp_name=first", f"cache_dir={tmp_path}")
    (store,) = (tmp_path / "text_store").glob("*/")
    np.save(store / "relevance.npy", np.array([Bomb(tmp_path / "ran")], dtype=object), allow_pickle=True)
    remember(store)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        train(*RANKPO, "exp_name=second", f"cache_dir={tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights", "optimizer", "random"])
def test_a_pickle_in_a_checkpoint_is_not_opened(tmp_path, name):
    options = (*RANKPO, "trainer.max_steps=2", "trainer.save_every=1", "exp_name=run", f"cache_dir={tmp_path}")
    train(*options)
    (tmp_path / "run" / "FINAL").rename(tmp_path / "aside")
    newest = CheckpointStore(tmp_path / "run").list()[-1].path
    torch.save({"x": Bomb(tmp_path / "ran")}, newest / f"{name}.safetensors")
    remember(newest)
    with pytest.raises(SafetensorError):
        train(*options, "resume=auto")
    assert not (tmp_path / "ran").exists()


def test_adapters_only_as_safetensors(tmp_path):
    options = ("loss=dpo", "model=tiny_pythia", "datasets=[toy_chat]", "trainer.max_steps=1", f"cache_dir={tmp_path}")
    train(*options, "model.use_peft=true", "exp_name=first")
    adapter = tmp_path / "first" / "FINAL" / "adapter"
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(RuntimeError, match=r"model\.load_lora_from=.* has no adapter_model\.safetensors"):
        train(*options, "model.use_peft=true", f"model.load_lora_from={adapter}", "exp_name=second")
    assert not (tmp_path / "ran").exists()


def remember(folder: Path) -> None:
    """Writes a folder's manifest anew, as whoever exchanges its files could."""
    files = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    entries = {name: [path.stat().st_size, checksum(path)] for name, path in files.items()}
    (folder / MANIFEST).write_text(json.dumps(entries))


# what a config may call


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "rankpo",
        "rankposition.Loss",
        "torch.load",
        "torch.hub.load",
        "rankpo.config.construct.import_module",  # a function that the module only uses
        "rankpo.tasks.description.subprocess.run",
        "rankpo.runs.checkpoints.shutil.rmtree",
        "rankpo.storage.folders.recover",  # ours, and no class
        "rankpo.runs.checkpoints.Path",  # a class from elsewhere
        "torch.optim.adamw.cast",
        "transformers.pipeline",
        "transformers.models.rag.retrieval_rag.LegacyIndex",  # opens pickles
        "peft.PeftModel",
        "",
        None,
        7,
    ],
)
def test_targets_that_are_refused(target):
    with pytest.raises(ValueError, match=f"_target_={target} (is not allowed; it must|does not exist)"):
        locate(target)


def test_targets_that_are_allowed():
    assert locate("torch.optim.AdamW") is torch.optim.AdamW
    assert locate("rankpo.losses.dpo.DPOLoss").__name__ == "DPOLoss"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("loss._target_=os.system",), "loss._target_=os.system"),
        (("trainer._target_=os.system",), "trainer._target_=os.system"),
        (("optimizer._target_=os.system",), "optimizer._target_=os.system"),
        (("datasets.toy_pairs._target_=os.system",), "datasets.toy_pairs._target_=os.system"),
        (("+datasets.toy_pairs.x={_target_: os.system, command: id}",), "datasets.toy_pairs.x._target_=os.system"),
        (("+optimizer.betas=[{_target_: os.system}]",), "optimizer.betas[0]._target_=os.system"),
        (("+hydra.callbacks.a={_target_: os.system, command: id}",), "hydra.callbacks.a._target_=os.system"),
        (("hydra.launcher._target_=os.system", "-m"), "hydra.launcher._target_=os.system"),
        (("+hydra.launcher.x={_target_: os.system}", "-m"), "hydra.launcher.x._target_=os.system"),
        (("+hydra.job_logging.handlers={a: {class: logging.os.system}}",), "handlers.a.class=logging.os.system"),
    ],
)
def test_nothing_foreign_is_called(tmp_path, monkeypatch, capsys, options, key):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("os.system was called"))
    code, lines = stopped(monkeypatch, capsys, *RANKPO, f"cache_dir={tmp_path}", *options)
    assert code == 2 and len(lines) == 1, lines
    assert key in lines[0] and "is not allowed; it must" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_factories_of_logging_configs():
    """Of a config file: the command line has no words for such a key."""
    factories = {"formatters": {"a": {"()": "colorlog.ColoredFormatter"}, "b": {"()": "os.system"}}}
    assert [problem.split()[0] for problem in foreign({"hydra_logging": factories})] == [
        "hydra.hydra_logging.formatters.b.()=os.system"
    ]


# what must not be written down


@pytest.mark.parametrize(
    ("option", "key"),
    [
        (f"exp_name={SECRET}", "exp_name"),
        (f"+judge.extra.api_key={SECRET[:9]}", "judge.extra.api_key"),
        ("judge.base_url=http://me:secret@host/v1", "judge.base_url"),
        ("exp_name=${oc.env:HF_TOKEN}", "exp_name"),
        ("exp_name=a-value-of-HF_TOKEN-here", "exp_name"),
        ("judge.model=the-value-of-MY_JUDGE", "judge.model"),
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(tmp_path, monkeypatch, capsys, option, key):
    monkeypatch.setenv("HF_TOKEN", "value-of-HF_TOKEN")
    monkeypatch.setenv("MY_JUDGE", "value-of-MY_JUDGE")
    judge = ("task=annotate", "judge=openai", "judge.base_url=http://host/v1", "judge.model=m")
    judge = (*judge, "judge.api_key_env=MY_JUDGE", "judge.extra={}", "judge.max_retries=0")
    code, lines = stopped(monkeypatch, capsys, *TINY, *judge, f"cache_dir={tmp_path}", option)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"{key} holds a secret") and "HF_TOKEN" in lines[0]
    assert not any(word in lines[0] for word in (SECRET[:9], "me:secret", "value-of"))
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_a_sweep_is_refused_before_its_folder_is_made(tmp_path, monkeypatch, capsys):
    options = (f"exp_name=a,{SECRET}", f"cache_dir={tmp_path}", "-m")
    code, lines = stopped(monkeypatch, capsys, *RANKPO, *options)
    assert code == 2 and lines[0].startswith("exp_name holds a secret") and SECRET not in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_without_launch_py_too():
    with pytest.raises(ConfigError, match="exp_name holds a secret"):
        compose([*RANKPO, f"exp_name={SECRET}"])


def test_secrets_of_the_environment_are_in_no_file_and_no_line(tmp_path, monkeypatch, capfd):
    """Of a run with its config, card and evaluation; test_metrics.py looks at what wandb is given."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    train(*RANKPO, "trainer.max_steps=1", "eval_datasets=[toy_pairs]", "exp_name=run", f"cache_dir={tmp_path}")
    said = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.json", "README.md", "rankpo.json", "metrics.jsonl"} <= {path.name for path in files}
    assert "step 1/1" in said.err and SECRET not in said.out + said.err
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_server_that_repeats_the_key_is_quoted_without_it(monkeypatch):
    class Echo(Handler):
        def do_POST(self) -> None:
            self.answer(403, f"who is {self.headers['Authorization']}?".encode(), {})

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving() as server:
        server.RequestHandlerClass = Echo
        judge = ServerJudge(base_url=server.url, model="m", template=Template(prompt="{query}{passage_a}{passage_b}"))
        with pytest.raises(JudgeStopped, match=r"who is Bearer \$OPENAI_API_KEY\?") as caught:
            judge.ask(judge.request("q", "a", "b"))
    assert SECRET not in str(caught.value)
