"""Overrides that take away what every run needs, or that give what no part can hold: one line each, no trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from rankpo.config import construct
from rankpo.config.check import GROUPS, NEEDED, OPTIONAL
from rankpo.config.compose import compose
from rankpo.config.messages import null_group, run_error
from rankpo.data.readers.chat import ChatRecords
from rankpo.data.readers.passes import BadRecords
from rankpo.errors import ConfigError
from rankpo.retrieval import faiss_index

ROOT = Path(__file__).parents[2]

BASE = ("model=tiny_pythia", "loss=sft", "datasets=[toy_chat]")


def test_every_group_is_needed_or_optional():
    assert {*NEEDED, *OPTIONAL} == set(GROUPS) and not {*NEEDED} & {*OPTIONAL}


@pytest.mark.parametrize("name", [*(name for name in NEEDED if name != "tracker"), "seed"])
def test_what_every_run_needs(name):
    if name == "model":
        return  # its kind is a package of its own, so that the rest of the model is missed instead
    with pytest.raises(ConfigError, match=rf"^{name} is not set, and every run needs (one|it); remove ~{name}"):
        compose([*BASE, f"~{name}"])


@pytest.mark.parametrize("name", ["scheduler", "optimizer", "tracker"])
def test_a_group_set_to_null(name):
    """Hydra refuses it with a trace that names no group."""
    given = [*BASE, f"{name}=null"]
    with pytest.raises(ValueError, match="must be a string or a list") as error:
        compose(given)
    message = null_group(error.value, given)
    assert message is not None and message.startswith(f"{name}=null: a run needs one of its options; allowed: ")
    assert null_group(ValueError("else"), given) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++model.peft.r=4", r"model.peft has no 'r'; here it is peft.lora_r \(allowed: lora_alpha"),
        ("++model.peft.lora_rank=4", r"model.peft has no 'lora_rank'; did you mean lora_r\?"),
        (
            "seed=100000000000000000000",
            "seed must be a whole number, got 100000000000000000000, which has more than 64",
        ),
        ("trainer.batch_size=100000000000000000000", "trainer.batch_size must be a whole number, got .* than 64 bits"),
    ],
)
def test_values_that_no_part_holds(override, message):
    with pytest.raises(ConfigError, match=message):
        compose([*BASE, override])


def test_bad_records_stand_on_lines_of_their_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a", "b\\u001b[2Jc": 1}\n')
    with pytest.raises(BadRecords) as caught:
        list(ChatRecords(name="x", path=str(path), format="trl_completion").examples())
    message = run_error(caught.value, {})
    assert message is not None and "\x1b" not in message
    assert [line.partition(": no field")[0] for line in message.splitlines()] == [
        "datasets.x: a.jsonl:1",
        "datasets.x: a.jsonl:2",
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
        ),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_a_run_out_of_memory_says_so_in_one_line(error):
    message = run_error(error, {})
    assert message is not None and "out of memory" in message and "\n" not in message
    assert "trainer.max_tokens" in message and "ulimit -v" in message


def test_a_library_that_memory_does_not_hold_is_not_missing(monkeypatch):
    """Neither an unknown class nor an extra that is not installed."""

    def failed(name):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr(construct, "import_module", failed)
    with pytest.raises(MemoryError) as caught:
        construct.locate("rankpo.losses.base.Loss")
    assert (run_error(caught.value, {}) or "").startswith("out of memory (libtorch_cpu.so")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(faiss_index.FaissError) as missing:
        faiss_index.load_faiss()
    assert "pip install" in (run_error(missing.value, {}) or "")
    error = faiss_index.FaissError("needs faiss")
    error.__cause__ = ImportError("libfaiss.so: cannot allocate memory in static TLS block")
    assert (run_error(error, {}) or "").startswith("out of memory")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the address space")
@pytest.mark.parametrize(("mebibytes", "code"), [(500, 1), (300, 1), (500, 0)])
def test_a_limit_of_memory_below_the_libraries_is_named(mebibytes, code):
    """The C++ runtime would end the process while it imports torch. --help needs no library."""
    command = f"ulimit -v {mebibytes << 10}; exec {sys.executable} {ROOT}/launch.py {'' if code else '--help'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    if code:
        (line,) = done.stderr.splitlines()
        assert f"ulimit -v) is {mebibytes} MiB" in line and "raise it" in line


def test_other_errors_are_no_lack_of_memory():
    with pytest.raises(ImportError) as caught:
        import rankpo.no_such_module  # noqa: F401
    assert run_error(caught.value, {}) is None
