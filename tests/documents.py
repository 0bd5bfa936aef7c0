"""Code blocks of Markdown pages, and their commands run in this process with tiny models in place of real ones.

A page is a story: its blocks run one after the other in one folder. Two titles of blocks have a meaning:
- a file name, such as `train.jsonl`: the block is the content of that file, which is written before the next command;
- one of MARKS, such as `Needs a server`: the block does not run here, but its commands are composed. What needs GPUs does run,
  with tiny models in one process, and what needs an optional package where that is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rankpo.cli import commands as program
from rankpo.config.flags import flags_last
from rankpo.config.places import CONFIG, ROOT, accelerate_file
from tests.runs import launch, train

DOCS = ROOT / "docs"
RUN_TINY = ("Needs a GPU", "Needs several GPUs")  # marks of blocks that run here all the same, with tiny models
NEEDS_PACKAGES = {  # marks of blocks that run where these packages are installed
    "Needs ONNX": ("onnx", "onnxruntime", "onnxscript"),
    "Needs OpenVINO": ("openvino", "onnx", "onnxscript"),
    "Needs qdrant-client": ("qdrant_client",),
    "Needs lancedb": ("lancedb",),
    "Needs optimum": ("optimum",),
}
FAILS, MESSAGE = (
    "Fails",
    "Message",
)  # a command that is refused, and the block behind it with what it says; … is any text
MARKS = (
    *RUN_TINY,
    *NEEDS_PACKAGES,
    FAILS,
    "Needs Slurm",
    "Needs a server",
    "Needs the hub",
    "Needs Docker",
    "Needs the network",
    "Takes minutes",
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)?(?: title=\"(?P<title>[^\"]*)\")?[^\n`]*$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. line: where it begins, from 1."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_file(self) -> bool:
        return bool(re.fullmatch(r"[\w./-]+\.(jsonl|json|yaml|py|tsv|csv|trec|txt)", self.title))

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        kept = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        return [" ".join(line.split("  #")[0].split()) for line in kept]


def pages() -> list[Path]:
    """README.md is not among them: tests/test_readme.py runs it."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Raises ValueError for one that does not end."""
    opened: tuple[int, re.Match[str]] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None:
            if match := FENCE.match(line):
                opened, lines = (number, match), []
        elif line.strip() == "```":
            start, match = opened
            text = "\n".join(item.removeprefix(match["indent"]) for item in lines)
            given = {"language": match["language"] or "", "title": match["title"] or ""}
            yield Block(page=page, line=start, text=f"{text}\n", **given)
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: the block has no end")


# ------------------------------------------------------------------------------------------- commands

ENCODERS = ("minilm", "modernbert", "bge_m3", "e5", "bge_reranker", "modernbert_reranker")
OF_NEOX = ("pythia", "gpt2")
DROPPED = (
    *("model.name_or_path=", "model.attn_implementation=flash_attention_2", "model.revision=", "tracker"),
    *("task.backend=vllm", "task.vllm=", "hydra/launcher="),
)
HUB = (
    "hh",
    "shp",
    "ultrabin",
    "oasst",
    "imdb",
    "rank_zephyr",
)  # datasets of a hub; a page may show a file of this name
EXPERIMENTS = {  # recipes whose own model is large
    "rankpo_stage1": "tiny_llama",
    "rankpo_stage2": "tiny_llama",
    "rag_bert": "tiny_bert",
    "rag_bert_distill": "tiny_bert",
    "rag_llm": "tiny_llama",
    "rag_llm_pairs": "tiny_llama",
    "rank_zephyr": "tiny_llama_wide",
    "first_mistral": "tiny_llama_wide",
    "llm_to_minilm": "tiny_bert",
}
FIRST_WORDS = ("rankpo", "python", "accelerate", "torchrun")


def overrides(command: str) -> list[str] | None:
    """The overrides of a command of ours as launch.py takes them, or None for a command of another program.

    Fails where a launcher is given a file that does not exist.
    """
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
        words.pop(0)  # a variable of the environment
    if words[0] == "rankpo":
        rest = program.translated(words[1:]) if words[1] not in ("init", "env") else None
        return None if rest is None else at_search_path(rest)
    for start in (["launch.py"], ["-m", "rankpo"]):
        place = next((n for n in range(len(words)) if words[n : n + len(start)] == start), None)
        if place is not None and words[0] in FIRST_WORDS:
            check_launcher(words[:place])
            rest = words[place + len(start) :]
            return at_search_path(rest if start == ["launch.py"] else program.translated(rest))
    return None


def check_launcher(words: Sequence[str]) -> None:
    if "--config_file" in words:
        file = words[words.index("--config_file") + 1]
        assert accelerate_file(file) is not None, f"{file} is not in accelerate_config/"


def at_search_path(words: Sequence[str]) -> list[str]:
    """--config-dir FOLDER as Hydra's search path, which `compose` takes."""
    if "--config-dir" in words:
        words = flags_last(list(words))
        place = words.index("--config-dir")
        folder = Path(words[place + 1]).resolve()
        words = [*words[:place], *words[place + 2 :], f"hydra.searchpath=[file://{folder}]"]
    return list(words)


def tiny(words: Sequence[str]) -> list[str]:
    """The overrides with tiny random models, on one CPU."""
    listwise = any(word.startswith(("loss=listwise_", "kind=listwise")) for word in words)
    made = [replaced(word, listwise) for word in words if not word.lstrip("+").startswith(DROPPED)]
    made += [item for name in HUB for item in local_copy(name, made)]
    recipes = [word.partition("=")[2] for word in made if word.startswith("experiment=") and "jobs" not in word]
    if recipes and not any(word.startswith("model=") for word in made):
        made += [
            f"model={EXPERIMENTS.get(recipes[0], 'tiny_bert')}",
            "model.name_or_path=null",
            "trainer.precision=fp32",
        ]
    if "model.decode=generate" in made and "task=rerank" in made:
        made.append("task.max_failed_windows=1")  # random weights write no order
    return made


def local_copy(name: str, words: Sequence[str]) -> list[str]:
    """Overrides that put the page's file in the place of a dataset of the hub, where the command reads that dataset."""
    chosen = f"datasets={name}" in words or f"experiment={name}" in words or f"datasets=[{name}]" in words
    here = name == "rank_zephyr" and "experiment=first_mistral" in words
    given = any(word.startswith(f"datasets.{name}.path=") for word in words)
    file = Path(f"{name}.jsonl")
    return (
        [f"datasets.{name}.path={file}", f"datasets.{name}.hub=null"]
        if (chosen or here) and not given and file.exists()
        else []
    )


def replaced(word: str, listwise: bool) -> str:
    name, _, value = word.partition("=")
    if name == "model" and not value.startswith("tiny_"):
        decoder = "tiny_llama_wide" if listwise else "tiny_llama"
        encoder = value in ENCODERS or value == "base"
        return f"model={'tiny_bert' if encoder else 'tiny_pythia' if value in OF_NEOX else decoder}"
    return "trainer.precision=fp32" if word in ("trainer.precision=fp16", "trainer.precision=bf16") else word


def run_command(command: str) -> None:
    """Runs a command in this process, but for a sweep. Fails for a program that is not ours and not known here."""
    words = shlex.split(command)
    if words[0] == "PYTHONPATH=.":
        sys.path.insert(0, os.getcwd())
    if words[0] == "cd":
        os.chdir(words[1])
    elif words[:2] in (["rankpo", "init"], ["rankpo", "env"]):
        rest = words[2:]
        assert (program._project(rest) if words[1] == "init" else program._environment(rest)) == 0
    else:
        given = overrides(command)
        assert given is not None, f"not a command of rankpo, in a block that is not marked: {command}"
        if "-m" in given:
            assert (done := launch(*tiny(given))).returncode == 0, done.stderr
        else:
            train(*tiny(given))


def refused(command: str, message: str) -> None:
    """Runs a command that must end with a message. Fails where it says something else, or works."""
    words = overrides(command)
    assert words is not None
    done = launch(*tiny(words))
    wanted = ".*".join(re.escape(part) for part in message.strip().split("…"))
    assert done.returncode in (1, 2) and re.search(wanted, done.stderr, re.DOTALL), f"{command}\n{done.stderr}"


def runs_here(title: str) -> bool:
    """Whether a block with this title runs in this environment."""
    if title in NEEDS_PACKAGES:
        return all(find_spec(name) is not None for name in NEEDS_PACKAGES[title])
    return title not in MARKS or title in RUN_TINY


def run_page(page: Path) -> int:
    """Runs the blocks of a page in the current folder; returns how many commands and Python blocks ran."""
    ran = 0
    namespace: dict[str, object] = {"__name__": "__main__"}
    failing = ""
    for block in blocks(page):
        if block.title == FAILS:
            (failing,) = block.commands
        if block.title == MESSAGE:
            refused(failing, block.text)
            ran += 1
        if block.is_file:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif not runs_here(block.title) or block.language not in ("bash", "python"):
            continue
        elif block.language == "python":
            code = re.sub(r"model=\"(minilm|bge_m3|modernbert)\"", 'model="tiny_bert"', block.text)
            exec(compile(code, block.place, "exec"), namespace)
            ran += 1
        else:
            for command in block.commands:
                try:
                    run_command(command)
                except BaseException as error:
                    raise AssertionError(f"{block.place}: {command}\n{type(error).__name__}: {error}") from error
                ran += 1
    return ran


__all__ = ["CONFIG", "FAILS", "Block", "blocks", "overrides", "pages", "run_page", "tiny"]
