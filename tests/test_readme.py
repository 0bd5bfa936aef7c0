"""Every command of README.md runs; its tree and tables are those of the disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rankpo.data.generated.jobs import write_jobs
from tests.runs import launch, train
from tests.starts import PATIENCE, ROOT

README = (ROOT / "README.md").read_text()
# run by CI itself, or for minutes by hand (`pytest -m slow`): a reason for each
ELSEWHERE = {
    "./install.sh demo": "trains for minutes",
    "./install.sh test": "runs this very test",
}
TINY = {
    "model=minilm": "model=tiny_bert",
    "model=pythia": "model=tiny_pythia",
    "search.num_trials=20": "search.num_trials=1",
}
CHAT = {"prompt": "What colour has the sky?", "chosen": "It is blue.", "rejected": "It is green, mostly."}


def commands() -> list[str]:
    """The lines of the README's bash blocks, without comments, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the files that the commands name, in which they run one after the other, as a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    write_jobs(folder / "jobs", num_profiles=120, num_posts=8)
    (folder / "train.jsonl").write_bytes((folder / "jobs" / "contrastive.jsonl").read_bytes())
    (folder / "pairs.jsonl").write_bytes((folder / "jobs" / "preferences.jsonl").read_bytes())
    (folder / "jobs" / "test").rename(folder / "beir")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    clicks = [
        {"search": {"text": row["query"]}, "clicked": [{"text": row["positives"][0]}], "shown_1": row["negatives"][0]}
        for row in rows
    ]
    (folder / "clicks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in clicks))
    scored = [{"sentence1": f"a red cat {number}", "sentence2": "a cat", "score": number % 6} for number in range(8)]
    (folder / "sts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scored))
    chat = [{**CHAT, "prompt": f"{CHAT['prompt']} ({number})"} for number in range(8)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chat))
    return folder


def run(command: str, launched: bool) -> None:
    """Runs a command as it stands, but for tiny models and searches; in this process unless it is a sweep or `launched`."""
    for full, tiny in TINY.items():
        command = re.sub(rf"(?<!\S){re.escape(full)}(?!\S)", tiny, command)
    *starter, program, rest = command.partition(" launch.py ")
    assert starter in (["python"], ["accelerate launch"]) and program
    words = shlex.split(rest)
    if "-m" in words:
        assert (done := launch(*words)).returncode == 0, done.stderr
    elif launched:
        accelerate = (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch")
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        subprocess.run([*accelerate, ROOT / "launch.py", *words], env=environment, timeout=PATIENCE, check=True)
    else:
        train(*words)


def test_every_command_of_the_readme_runs(workplace, monkeypatch):
    """One after the other in one folder, as a reader would; the first of accelerate's by it. Then the lines of Python."""
    monkeypatch.chdir(workplace)
    ran = [command for command in commands() if command not in ELSEWHERE]
    assert len(ran) >= 12
    launched = next(command for command in ran if command.startswith("accelerate launch "))
    for command in ran:
        try:
            run(command, command is launched)
        except Exception as error:
            raise AssertionError(f"README.md: {command}") from error
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})


def test_the_commands_that_do_not_run_here_are_in_the_readme():
    assert set(ELSEWHERE) <= set(commands())


# what each server's own documentation says of an option's value, beside the model's folder
SERVERS = {
    "vllm serve": {"--runner": "auto|pooling|generate", "--dtype": "auto|float32|bfloat16", "--max-model-len": r"\d+"},
    "docker run": {"-p": r"\d+:80", "-v": r"\$PWD/(\S+):/model", "--gpus": "all"},
    "text-embeddings-router": {"--model-id": "/model", "--auto-truncate": None, "--pooling": "cls|mean|last-token"},
    "infinity_emb v2": {
        "--model-id": r"(\S+)",
        "--engine": "torch|optimum",
        "--dtype": "float32|float16|auto",
        "--port": r"\d+",
    },
}
IMAGE = r"ghcr\.io/huggingface/text-embeddings-inference:(cpu-)?\d\.\d"


def options_of(words: list[str], known: dict[str, str | None]) -> list[str]:
    """The values that stand for a folder. Fails for an option that the server does not have, or a value it refuses."""
    folders = []
    while words:
        name = words.pop(0)
        assert name in known, name
        if known[name] is not None:
            match = re.fullmatch(known[name], words.pop(0))
            assert match, name
            folders += match.groups()
    return folders


def test_commands_of_servers_are_well_formed():
    """They need a GPU, docker or an environment of their own: options, images and folders are read here."""
    (block,) = re.findall(r"## Serving\n.*?```text\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    made = {f"runs/{name}/FINAL" for command in commands() for name in re.findall(r"exp_name=(\w+)", command)}
    served = []
    for line in lines:
        program, words = " ".join(line.split()[:2]), shlex.split(line)[2:]
        if program == "vllm serve":
            folders = [words.pop(0), *options_of(words, SERVERS[program])]
        elif program == "docker run":
            (image,) = [word for word in words if re.fullmatch(IMAGE, word)]
            place = words.index(image)
            folders = options_of(words[:place], SERVERS[program])
            options_of(words[place + 1 :], SERVERS["text-embeddings-router"])
        else:
            folders = options_of(words, SERVERS[program])
        assert len(folders) == 1 and folders[0] in made, line
        served += [(program, folder) for folder in folders]
    assert len(served) == len(set(served)) == 7


def test_tree_names_what_is_there():
    (tree,) = re.findall(r"## Tree\n\n```\n(.*?)```", README, flags=re.DOTALL)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    shown = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    generated = {"data", "build", "outputs", "rankpo.egg-info"}
    assert shown - generated - {name.split("/")[0] for name in named} == set()
    packages = {f"rankpo/{path.parent.name}" for path in (ROOT / "rankpo").glob("*/__init__.py")}
    assert packages - named == set()


def test_every_loss_and_task_is_named():
    for group in ("loss", "task"):
        missing = [path.stem for path in (ROOT / "config" / group).glob("*.yaml") if f"`{path.stem}`" not in README]
        assert missing == [], f"README.md does not name these options of {group}"


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []
