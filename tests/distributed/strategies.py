"""Launches of launch.py under every strategy, two real processes each, and what to compare them with."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.runs import CONTRASTIVE, RANKPO, ROOT

STRATEGIES = ("ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
EVALUATED = ("trainer.eval_every=2", "trainer.max_steps=4")
BASE = (
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
RECIPES = {
    "contrastive": (*CONTRASTIVE, *EVALUATED, "trainer.max_tokens=100000", "eval_datasets=[toy_pairs]"),
    "gradient cache": (*CONTRASTIVE, *EVALUATED, "trainer.max_tokens=200"),
    "rankpo": (*RANKPO, *EVALUATED, "trainer.max_tokens=200", "eval_datasets=[toy_pairs]"),
    "dpo": (*BASE, *EVALUATED, "model=tiny_llama_lm", "loss=dpo", "datasets=[toy_chat]", "eval_datasets=[toy_chat]"),
    "kto": (*BASE, *EVALUATED, "model=tiny_llama_lm", "loss=kto", "datasets=[toy_chat]", "trainer.max_tokens=400"),
    "ppo": (
        *BASE,
        *EVALUATED,
        "model=tiny_llama_lm",
        "loss=ppo",
        "loss.value_max_grad_norm=null",
        "datasets=[toy_chat]",
    ),
    "lora": (*RANKPO, *EVALUATED, "model.use_peft=true", "loss.reference_free=false"),
    "tdpo live": (*BASE, *EVALUATED, "model=tiny_llama_lm", "loss=tdpo", "datasets=[toy_chat]"),
    "reranker": (
        *BASE,
        *EVALUATED,
        "model=tiny_reranker",
        "loss=softmax",
        "datasets=[toy_contrastive]",
        "eval_datasets=[toy_pairs]",
    ),
}


def needs(strategy: str) -> None:
    """Skips the test where the strategy's package is missing."""
    if strategy.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install -e .[deepspeed]")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accelerate(strategy: str, *overrides: str, processes: int = 2, timeout: float = 300) -> subprocess.CompletedProcess:
    """`accelerate launch` as the README says it; what hangs is ended with all its processes."""
    program = [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(ROOT / "accelerate_config" / f"{strategy}.yaml")),
        *("--num_processes", str(processes), "--main_process_port", str(free_port())),
        str(ROOT / "launch.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*program, *overrides],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # workers have sessions of their own: killing a group would leave them
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        output, _ = process.communicate()
        pytest.fail(f"{strategy} hangs after {timeout} s:\n{output}")
    return subprocess.CompletedProcess(program, process.returncode, output, "")


def place(folder: Path, name: str) -> tuple[str, str]:
    return f"exp_name={name}", f"cache_dir={folder}"
