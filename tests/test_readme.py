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

from rankpo.data.jobs import write_jobs
from tests.runs import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# run by CI itself, or for minutes by hand (`pytest -m slow`): a reason for each
ELSEWHERE = {
    "./install.sh demo": "trains for minutes",
    "./install.sh test": "runs this very test",
}
TINY = {
    "model=minilm": "model=tiny_bert",
    "model=minilm_reranker": "model=tiny_reranker",
    "model=pythia": "model=tiny_pythia",
    "accelerate": f"{sys.executable} -m accelerate.commands.accelerate_cli",
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
    chat = [{**CHAT, "prompt": f"{CHAT['prompt']} ({number})"} for number in range(8)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chat))
    return folder


def run(command: str, folder: Path) -> None:
    """Runs a command as it stands, but for tiny models; one that needs no launcher in this process, to save its start."""
    for full, tiny in TINY.items():
        command = re.sub(rf"(?<!\S){re.escape(full)}(?!\S)", tiny, command)
    words = shlex.split(command)
    if words[:2] == ["python", "launch.py"] and "-m" not in words:
        train(*words[2:])
        return
    words = [{"launch.py": str(ROOT / "launch.py"), "python": sys.executable}.get(word, word) for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_CONFIG_FILE": str(ROOT / "accelerate_config" / "cpu.yaml"),
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_every_command_of_the_readme_runs(workplace, monkeypatch):
    """One after the other in one folder, as a reader would; then its lines of Python."""
    monkeypatch.chdir(workplace)
    ran = [command for command in commands() if command not in ELSEWHERE]
    assert len(ran) >= 12
    for command in ran:
        try:
            run(command, workplace)
        except Exception as error:
            raise AssertionError(f"README.md: {command}") from error
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})


def test_the_commands_that_do_not_run_here_are_in_the_readme():
    assert set(ELSEWHERE) <= set(commands())


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
