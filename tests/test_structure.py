"""The limits that keep the sources small and typed."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rankpo"

FILE_LINES = 300
FUNCTION_LINES = 40
PARAMETERS = 6  # without self and cls

MOST_ANY = 200
MOST_FUNCTION_IMPORTS = 80

READING_LINES = 700  # of the five files that README.md names to a newcomer, together
READING_PATH = (
    "launch.py",
    "rankpo/types.py",
    "rankpo/losses/rankpo.py",
    "rankpo/trainers/basic.py",
    "rankpo/models/embedding/model.py",
)

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {
    "models/engine/packing.py:packed_sdpa": "transformers' attention interface",
    "models/engine/prompt_trees.py:tree_sdpa": "transformers' attention interface",
}

NAMES_OF_HEADS = {"models/reranker/heads.py"}  # heads of rerankers, one of which is called causal_lm

WRITTEN_BY_TESTS = {"mine.md"}
BUILT = {
    "benchmarks.md",
    "loss.md",
    "DATE.md",
}  # pages that MkDocs builds from the sources, and the name of a day's results

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[str, ast.Module]:
    """The parsed sources of the package, by their path in it."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def functions() -> list[tuple[str, Function]]:
    return [
        (f"{path}:{node.name}", node)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]


def parameters(node: Function) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def num_any(tree: ast.AST) -> int:
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def function_imports(tree: ast.AST) -> int:
    """Imports inside functions; one inside two nested functions counts once."""
    found = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, Function)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    return len(found)


def unlisted(over: dict[str, int], exceptions: dict[str, str], limit: int) -> list[str]:
    """One line for each place above a limit that is no exception, and for each exception that is below it."""
    new = [f"{place} has {size}, more than {limit}" for place, size in over.items() if place not in exceptions]
    return new + [
        f"{place} keeps the limit now: remove it from the exceptions" for place in exceptions if place not in over
    ]


def test_files_are_short():
    sizes = {path: len((PACKAGE / path).read_text().splitlines()) for path in trees()}
    over = {path: size for path, size in sizes.items() if size > FILE_LINES}
    assert unlisted(over, LONG_FILES, FILE_LINES) == []


def test_the_path_that_a_newcomer_reads_is_short():
    sizes = {path: len((ROOT / path).read_text().splitlines()) for path in READING_PATH}
    assert sum(sizes.values()) <= READING_LINES, sizes


def test_functions_are_short():
    sizes = {place: node.end_lineno - node.lineno + 1 for place, node in functions()}
    over = {place: size for place, size in sizes.items() if size > FUNCTION_LINES}
    assert unlisted(over, LONG_FUNCTIONS, FUNCTION_LINES) == []


def test_functions_have_few_parameters():
    over = {place: count for place, node in functions() if (count := parameters(node)) > PARAMETERS}
    assert unlisted(over, MANY_PARAMETERS, PARAMETERS) == []


def test_any_stands_at_the_borders_to_libraries():
    assert sum(map(num_any, trees().values())) <= MOST_ANY


def test_imports_inside_functions_are_few():
    assert sum(map(function_imports, trees().values())) <= MOST_FUNCTION_IMPORTS


KINDS = {path.parent.name for path in PACKAGE.glob("models/*/config.py")}


def compared_kinds(tree: ast.AST) -> set[str]:
    """Names of kinds that a source compares with something that is called `kind`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = {side.attr for side in sides if isinstance(side, ast.Attribute)}
            names |= {side.id for side in sides if isinstance(side, ast.Name)}
            texts = {
                inner.value
                for side in sides
                for inner in ast.walk(side)
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
            }
            if "kind" in names:
                found |= texts & KINDS
    return found


def test_kinds_are_known_by_name_in_their_own_folders_alone():
    wrong = [
        f"{path}: {name}"
        for path, tree in trees().items()
        for name in compared_kinds(tree)
        if not path.startswith(f"models/{name}/") and path not in NAMES_OF_HEADS
    ]
    assert wrong == []


def test_comparisons_of_kinds_are_seen():
    assert compared_kinds(ast.parse('model.kind == "listwise" or kind in ("reranker", "x")')) == {
        "listwise",
        "reranker",
    }
    assert compared_kinds(ast.parse('model.gives == "listwise"')) == set()


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a checkout of git")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def missing_pages(text: str, known: set[str]) -> list[str]:
    """The markdown files that a text names and the repository does not hold."""
    return [name for name in re.findall(r"[\w./-]*\w\.md\b", text) if name.rsplit("/", 1)[-1] not in known]


def test_no_source_refers_to_a_page_that_is_not_here():
    files = tracked()
    known = {path.name for path in files if path.suffix == ".md"} | WRITTEN_BY_TESTS | BUILT
    sources = [path for path in files if path.suffix in (".py", ".yaml", ".toml", ".sh") and path != Path(__file__)]
    wrong = [f"{path.name}: {name}" for path in sources for name in missing_pages(path.read_text(), known)]
    assert wrong == []


def test_files_that_pages_name_exist():
    """Paths of tests and sources in the documentation; NAME stands for any name."""
    pattern = re.compile(r"`((?:tests|rankpo|config|benchmarks|scripts|accelerate_config)/[\w/.]+)`")
    pages = [
        path for path in tracked() if path.suffix == ".md" and path.name != "LOG.md" and path.parent.name != "results"
    ]
    named = {(path.name, name) for path in pages for name in pattern.findall(path.read_text()) if "NAME" not in name}
    assert len(named) > 20
    assert sorted((page, name) for page, name in named if not (ROOT / name).exists()) == []


def test_the_counts_see_what_they_count():
    tree = ast.parse("def f(self, a, *, b: Any) -> Any:\n    def g():\n        import os\n    from x import y\n")
    assert parameters(tree.body[0]) == 2
    assert num_any(tree) == 2
    assert function_imports(tree) == 2
    assert missing_pages("see PAPERS.md and docs/losses.md", {"PAPERS.md"}) == ["docs/losses.md"]
    assert unlisted({"a": 9}, {"b": "why"}, 5) == [
        "a has 9, more than 5",
        "b keeps the limit now: remove it from the exceptions",
    ]


def imported(path: str, tree: ast.Module, modules: frozenset[str]) -> set[str]:
    """The modules of the package that a module imports anywhere in it, for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inside or ({node.module} & modules)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
    return found - {module_of(path)}


def module_of(path: str) -> str:
    return "rankpo." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_the_loop_reads_in_one_screen():
    assert len((PACKAGE / "trainers" / "basic.py").read_text().splitlines()) <= 180


def test_no_modules_import_each_other_in_a_circle():
    """Also for types and inside functions. Modules that import nothing of the rest are taken away until none is left."""
    modules = frozenset(map(module_of, trees()))
    left = {module_of(path): imported(path, tree, modules) for path, tree in trees().items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert sorted(left) == [], "these modules import each other in circles, or import such modules"
