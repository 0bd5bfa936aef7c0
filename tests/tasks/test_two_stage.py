"""scripts/two_stage.sh as a user runs it: every command of it runs, and a second start repeats nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.runs import ROOT, final_weights, train

SCRIPT = ROOT / "scripts" / "two_stage.sh"
# a model that learned nothing scores everything alike: no candidate would be below 95 % of a positive
SIZES = {
    "MODEL": "tiny_bert",
    "MINING": "dense",
    "POSTS": "8",
    "PROFILES": "60",
    "TEST_POSTS": "6",
    "TEST_PROFILES": "60",
}
OPTIONS = ("trainer.max_steps=2", "trainer.batch_size=4")
TRAINED = ("one", "two", "plain", "aligned")
# stands where python would: notes its arguments
NOTES = """#!{python}
import json, os, sys
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def start(cache: Path, **more: str) -> subprocess.CompletedProcess:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on PATH")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **SIZES, "CACHE": str(cache), **more}
    return subprocess.run(
        [bash, str(SCRIPT), *OPTIONS], cwd=cache.parent, env=environment, capture_output=True, text=True, check=False
    )


def commands(cache: Path) -> list[list[str]]:
    """What the script would give launch.py, in order."""
    python, notes = cache.parent / "python", cache.parent / "notes.jsonl"
    python.write_text(NOTES.format(python=sys.executable))
    python.chmod(0o755)
    notes.unlink(missing_ok=True)
    done = start(cache, PYTHON=str(python), NOTES=str(notes))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in notes.read_text().splitlines()]
    assert {command[0] for command in found} == {"launch.py"}
    return [command[1:] for command in found]


def check(cache: Path) -> None:
    """Four models that differ, the next stage's data of each stage, and a report that tells all of it."""
    weights = [final_weights(cache / name)["embeddings.word_embeddings.weight"] for name in TRAINED]
    assert all(not first.equal(second) for n, first in enumerate(weights) for second in weights[n + 1 :])
    mined = [json.loads(line) for line in (cache / "mined" / "mined.jsonl").read_text().splitlines()]
    assert len(mined) >= 4, "posts with a profile that fits"
    assert all(record["negatives"] and not set(record["negatives"]) & set(record["positives"]) for record in mined)
    preferences = (cache / "judged" / "annotate" / "preferences.jsonl").read_text().splitlines()
    assert len(preferences) > 8
    steps = [json.loads(line)["step"] for line in (cache / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    page = " ".join((cache / "report.html").read_text().split())
    assert "Alignment against retention" in page
    assert "Hard negatives: mined" in page and "Preferences of a judge: judged" in page
    for name in TRAINED:
        assert f"<td>{name}</td>" in page


def test_the_config_has_every_key_of_the_script(tmp_path):
    """What a renamed option, key or task would break shows here, in a second."""
    found = commands(tmp_path / "story")
    tasks = []
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        for command in found:
            config = compose(config_name="config", overrides=command)
            tasks.append(config.task._target_.rsplit(".", 1)[1])
            # the same spelling of a folder where it is written and where it is read
            assert str(config.run_dir).startswith(str(tmp_path / "story"))
    assert tasks == ["Train", "Mine", "Train", "Annotate", "Train", "Train", *["Evaluate"] * 4, "Report"]


@pytest.mark.slow
def test_every_command_of_the_script_runs_and_a_second_start_repeats_nothing(tmp_path, capsys):
    """Its commands one after the other in this process, which saves twelve starts."""
    cache = tmp_path / "story"
    for command in commands(cache):
        train(*command)
    check(cache)
    assert "retention/jobs_test/ndcg@20" in capsys.readouterr().out
    assert not any("task=mine" in command for command in commands(cache)), "what was mined stays"
    before = (cache / "one" / "metrics.jsonl").read_bytes()
    train(*commands(cache)[0])
    assert (cache / "one" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_script_itself(tmp_path):
    """Twelve processes, a minute on two cores."""
    done = start(tmp_path / "story", PYTHON=sys.executable)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    check(tmp_path / "story")
    tables = [line for line in done.stdout.splitlines() if line.startswith("model ") and "accuracy" in line]
    assert len(tables) == len(TRAINED), "a table of each model's evaluation"
    assert ["retention/jobs_test/ndcg@20" in line for line in tables] == [False, True, True, True]
    assert re.search(r"report\.html written", done.stderr)
