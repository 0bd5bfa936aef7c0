"""The Dockerfile and the conda environment name what there is; building them needs a network."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.starts import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_everything_that_is_copied_is_there_and_not_ignored():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, flags=re.MULTILINE) for name in line.split()}
    assert copied == allowed and all((ROOT / name).exists() for name in copied)
    sources = re.search(r"SOURCES = \((.*?)\)", (ROOT / "tests" / "cli" / "test_wheel.py").read_text(), flags=re.DOTALL)
    assert sources and set(re.findall(r'"([\w_]+)"', sources[1])) <= copied


def test_extras_exist():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    (own,) = re.findall(r"-e \.\[(.*)\]", " ".join(pip))
    (docker,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    for name in (*own.split(","), *docker.split(",")):
        assert name in PROJECT["optional-dependencies"], name


def test_the_versions_of_python_are_those_of_the_project():
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    named = re.findall(
        r"python[:=]3\.(\d+)|^ARG PYTHON=3\.(\d+)", DOCKERFILE + (ROOT / "environment.yml").read_text(), re.MULTILINE
    )
    assert named and all(int(low) <= int(a or b) < int(high) for a, b in named)
