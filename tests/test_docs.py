"""Pages of docs/: every command is composed, pages run as a reader would, and every key that they name exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from rankpo.config.aliases import modern
from rankpo.config.named_datasets import OWN_KEYS
from rankpo.config.places import CONFIG, ROOT
from rankpo.losses.base import NEEDS as LOSS_NEEDS
from tests.documents import DOCS, FAILS, MARKS, blocks, overrides, pages, run_page

sys.path.insert(0, str(ROOT / "scripts" / "documentation"))
from groups import all_keys, comments, groups, meaning, options, read, words
from pages import NEEDS

PAGES = [path.relative_to(DOCS).as_posix() for path in pages()]
IN_DEFAULT_SUITE = ("start.md",)
# first words of commands of other programs, which stand in marked blocks only
OTHERS = ("pip", "docker", "curl", "vllm", "infinity_emb", "sbatch", "source", "export", "git", "mkdocs")


def commands() -> list[tuple[str, str]]:
    """Each command of every bash block, with its place."""
    found = [b for page in pages() for b in blocks(page) if b.language == "bash" and b.title != FAILS]
    return [(block.place, command) for block in found for command in block.commands]


def test_titles_of_blocks_are_files_or_marks():
    """A mark that is misspelt would be a title without effect."""
    for page in pages():
        for block in blocks(page):
            known = not block.title or block.is_file or block.title in MARKS or block.language == "text"
            assert known, f"{block.place}: {block.title!r} is no file and none of {', '.join(MARKS)}"


def test_commands_of_other_programs_are_in_marked_blocks():
    for page in pages():
        for block in (block for block in blocks(page) if block.language == "bash" and block.title in MARKS):
            for command in block.commands:
                first = shlex.split(command)[0]
                ours = overrides(command) is not None or first in OTHERS or (ROOT / first).is_file()
                assert ours, f"{block.place}: {command}"


def composed_as(words: list[str]) -> list[str]:
    """The overrides for `compose`: of a sweep, the first value of each key."""
    swept = "-m" in words
    single = [re.sub(r"=([^\[{('\",]+),.*", r"=\1", word) if swept else word for word in words if word != "-m"]
    return [word for word in single if not swept or "(" not in word]


def shape(words: list[str]) -> frozenset[str]:
    """The options and the names of the keys: what composing checks."""
    names = groups()
    return frozenset(word if word.partition("=")[0] in names else word.partition("=")[0] for word in words)


def test_every_command_composes(tmp_path, monkeypatch):
    """All options and keys of all commands exist. Files that they name need not be there.

    A command whose options and keys are among those of another one is composed with it.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    given: list[tuple[frozenset[str], str, list[str]]] = []
    for place, command in commands():
        if command.startswith("rankpo data "):
            Path(command.split()[2]).touch()
        words = overrides(command)
        if words is not None and not any(word.startswith("hydra.searchpath=") for word in words):
            given.append((shape(composed_as(words)), f"{place}: {command}", composed_as(words)))
    given.sort(key=lambda item: -len(item[0]))
    composed: list[frozenset[str]] = []
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        for wanted, line, words in given:
            if any(wanted <= other for other in composed):
                continue
            composed.append(wanted)
            modern_words, notes = modern(words)
            assert not notes, f"{line}: {notes}"
            try:
                hydra_compose("config", overrides=modern_words)
            except Exception as error:
                raise AssertionError(f"{line}\n{error}") from error
    assert len(given) >= 60


@pytest.mark.parametrize(
    "page", [page if page in IN_DEFAULT_SUITE else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]
)
def test_pages_run(page, tmp_path, monkeypatch):
    """The page's commands and Python blocks, one after the other in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    runnable = any(block.language in ("bash", "python") and block.title not in MARKS for block in blocks(DOCS / page))
    assert run_page(DOCS / page) > 0 or not runnable, text[:80]


# ---------------------------------------------------------------------------------------------- names in the text

CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FILES = (
    "py",
    "yaml",
    "json",
    "jsonl",
    "md",
    "html",
    "trec",
    "sh",
    "toml",
    "txt",
    "safetensors",
    "tsv",
    "journal",
    "npy",
)


def named_in(page: Path) -> list[str]:
    """Words of inline code outside of fenced blocks; without the first column of tables that translate other systems."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    if page.parent.name == "coming":
        text = re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.MULTILINE)
    return [word.strip("…,;") for code in CODE.findall(text) for word in code.split()]


def exists(word: str, keys: set[str], heads: set[str]) -> bool:
    """Whether a word that looks like a key or a choice is one; True for a word that looks like neither."""
    name, equals, value = word.lstrip("+~").partition("=")
    if not re.fullmatch(r"[a-z_]+(\.[A-Za-z_0-9]+)*", name) or name.rpartition(".")[2] in FILES:
        return True
    head, _, rest = name.partition(".")
    if head not in heads:
        return not equals or name in keys or not rest
    if not rest:
        folder = CONFIG / head
        chosen = re.sub(r"[\[\]]", "", value).split(",") if equals and folder.is_dir() else []
        return all((folder / f"{item}.yaml").is_file() for item in chosen if re.fullmatch(r"[a-z][\w-]*", item))
    if head in ("datasets", "eval_datasets") and rest.rpartition(".")[2] in OWN_KEYS:
        return True  # a key that every dataset has
    if rest.startswith("NAME."):
        return any(re.fullmatch(rf"{head}\.[a-z_]+\.{re.escape(rest[5:])}", key) for key in keys)
    return any(
        key == name or key.startswith(f"{name}.") or (key in FREE and name.startswith(f"{key}.")) for key in keys
    )


PRESETS = ("experiment", "debug")
FREE_PARTS = re.compile(
    r"^model\.(random|by_kind)\.|^tracker\.backends\."
)  # keys of transformers, of kinds, of trackers
FREE = {
    "model.random",
    "judge.extra",
    "task.vllm",
    "loss.term_weights",
    "task.labels",
}  # mappings whose keys are the user's


def test_every_key_and_option_that_pages_name_exists():
    keys = all_keys()
    heads = {*groups(), "eval_datasets", "replay_datasets", "replay_dataloader"}
    wrong = [
        f"{page.relative_to(ROOT)}: {word}"
        for page in pages()
        for word in named_in(page)
        if not exists(word, keys, heads)
    ]
    assert wrong == []


@pytest.mark.parametrize("word", ["loss.betta", "loss=dpoo", "datasets.NAME.pth", "datasets=[rankp0]", "exp_nam=x"])
def test_a_name_that_does_not_exist_is_found(word):
    heads = {*groups(), "eval_datasets"}
    assert exists(word, all_keys(), heads) == (word == "exp_nam=x")


def test_every_key_of_the_reference_has_a_type():
    keys = [key for path in CONFIG.rglob("*.yaml") if "judge" not in path.parts for key in read(path).keys]
    assert [key.name for key in keys if not key.type and key.default != "null"] == []


def test_every_key_of_the_reference_has_a_meaning():
    """A comment in its yaml, or words for its last part; presets, which set keys of other yamls, need none."""
    shown = [
        (group, key) for group in groups() if group not in PRESETS for option in options(group) for key in option.keys
    ]
    missing = [key.name for group, key in shown if not meaning(group, key) and not FREE_PARTS.search(key.name)]
    assert missing == [], "add a comment behind the key in its yaml"


def test_every_need_of_a_loss_is_explained():
    assert set(NEEDS) == set(LOSS_NEEDS)


def test_no_word_is_left_over():
    """Words for a key that no yaml has would be a trace of an old key."""
    used = {
        (group, key.name.rpartition(".")[2]) for group in groups() for option in options(group) for key in option.keys
    }
    assert {(group, name) for group, named in words().items() for name in named} - used == set()


def test_comments_are_read_with_their_keys(tmp_path):
    """Values with a # of their own, comments of several lines, and nested keys."""
    read_as = comments(
        "a:\n  text: 'x # y'   # of a.text\n  b: 1\n  mode: z          # first\n                   # second\nc: [1, 2]  # of c\n"
    )
    assert read_as == {"a.text": "of a.text", "a.mode": "first second", "c": "of c"}


def test_every_loss_is_in_the_table_of_data():
    """ "Which loss for my data" names each loss, or the other name of the same one."""
    text = (DOCS / "losses.md").read_text()
    same = {"pointwise_bce", "pointwise_mse", "point_ce", "point_mse", "pairwise_ranknet", "listwise_ce", "kto-zero"}
    missing = [path.stem for path in (CONFIG / "loss").glob("*.yaml") if f"loss={path.stem}`" not in text]
    assert {name for name in missing if f"loss={name} " not in text} <= same


# ------------------------------------------------------------------------------------------------ servers and the tree

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
    page = [block for block in blocks(DOCS / "guides" / "serving.md") if block.language == "bash"]
    lines = [command for block in page if block.title == "Needs a server" for command in block.commands]
    ran = [command for block in page if block.title != "Needs a server" for command in block.commands]
    made = {f"runs/{name}/FINAL" for command in ran for name in re.findall(r"exp_name=(\w+)", command)}
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
    (tree,) = [block.text for block in blocks(DOCS / "design" / "index.md") if block.text.startswith("launch.py ")]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    shown = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    generated = {"data", "build", "outputs", "runs", "rankpo.egg-info"}
    assert shown - generated - {name.split("/")[0] for name in named} == set()
    packages = {f"rankpo/{path.parent.name}" for path in (ROOT / "rankpo").glob("*/__init__.py")}
    assert packages - named == set()
