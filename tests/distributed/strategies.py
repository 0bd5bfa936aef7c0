"""Launches under every strategy, two real processes each, and what to compare them with."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest
from torch.testing import assert_close

from tests.recipes import HYBRID, LATE, SPARSE, SPARSE_CONTRASTIVE
from tests.runs import CONTRASTIVE, RANKPO, curve, final_weights, train

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = ("ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
SPLIT = ("fsdp", "deepspeed_zero3")  # parameters too
DEEPSPEED = ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
TOLD = ("ACCELERATE_", "FSDP_")  # variables by which accelerate launch tells its processes what they are
STEPS = 4
LOGGED = ("train/grad_norm", "train/kl/mismatched", "train/rewards/chosen", "train/scores/chosen")
EVALUATED = ("trainer.eval_every=2", f"trainer.max_steps={STEPS}")
BASE = (
    *EVALUATED,
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
# evaluations whose numbers of texts, pairs and lists no two processes share evenly
PAIRS = ("eval_datasets=[toy_pairs]", "eval_datasets.toy_pairs.num_posts=5", "eval_datasets.toy_pairs.num_pairs=1")
CORPUS = (
    "eval_datasets=[toy_graded]",
    "eval_datasets.toy_graded.num_posts=5",
    "eval_datasets.toy_graded.num_profiles=61",
)
ANSWERS = ("eval_datasets=[toy_chat]", "eval_datasets.toy_chat.num_examples=7")
LISTS = ("eval_datasets=[toy_lists]", "eval_datasets.toy_lists.num_examples=7")
SPARSE_PAIRS = (*SPARSE, "loss=rankpo", "loss.temperature=1", "datasets=[toy_pairs]", "optimizer.lr=0.01")
CHAT = (*BASE, "model=tiny_llama", "kind=causal_lm", "datasets=[toy_chat]")
RERANKER = (*BASE, "model=tiny_bert", "kind=reranker", "datasets=[toy_contrastive]")
LISTWISE = (*BASE, "model=tiny_llama_wide", "kind=listwise", "datasets=[toy_lists]")
IN_BATCH = ("loss.temperature=0.1", "datasets=[toy_contrastive]")
# one pair: one query to encode, which is one rank's. The other must gather with it, or both wait for ever
ONE_QUERY = (*PAIRS[:1], "eval_datasets.toy_pairs.num_posts=1", *PAIRS[2:])
RECIPES = {
    "contrastive": (*CONTRASTIVE, *EVALUATED, *CORPUS, "trainer.max_tokens=100000"),
    "gradient cache": (*CONTRASTIVE, *EVALUATED, "trainer.max_tokens=200"),
    "one query": (*CONTRASTIVE, *EVALUATED, *ONE_QUERY),
    "rankpo": (*RANKPO, *EVALUATED, *PAIRS, "trainer.max_tokens=200"),
    "rankpo, LoRA": (*RANKPO, *EVALUATED, "model.use_peft=true", "loss.reference_free=false"),
    "rankpo, average": (*RANKPO, *EVALUATED, *PAIRS, "trainer.ema=0.5", "trainer.save_every=2"),
    "gradient cache, average": (*CONTRASTIVE, *EVALUATED, *CORPUS, "trainer.max_tokens=200", "trainer.ema=0.15"),
    "sparse": (*SPARSE_CONTRASTIVE, *EVALUATED, *CORPUS, "trainer.max_tokens=300"),
    "sparse, static queries": (*SPARSE_CONTRASTIVE, *EVALUATED, "model.query_encoder=static"),
    "sparse, LoRA": (*SPARSE_PAIRS, *EVALUATED, "model.use_peft=true", "loss.reference_free=false"),
    "late interaction": (*LATE, "loss=contrastive", *IN_BATCH, *EVALUATED, *CORPUS, "trainer.max_tokens=100000"),
    "late interaction, cache": (*LATE, "loss=contrastive", *IN_BATCH, *EVALUATED, "trainer.max_tokens=200"),
    "late interaction, LoRA": (
        *(*LATE, "loss=rankpo", "datasets=[toy_pairs]", *EVALUATED, *PAIRS),
        *("model.use_peft=true", "loss.reference_free=false"),
    ),
    "hybrid": (*HYBRID, "loss=m3", *IN_BATCH, *EVALUATED, *CORPUS, "trainer.max_tokens=300"),
    "hybrid, LoRA": (
        *(*HYBRID, "loss=rankpo", "datasets=[toy_pairs]", *EVALUATED, *PAIRS),
        *("model.use_peft=true", "loss.reference_free=false"),
    ),
    "reranker": (*RERANKER, "loss=softmax", *PAIRS),
    "listwise reranker": (*LISTWISE, "loss=listwise_combined", "trainer.max_tokens=200", *LISTS),
    "sft": (*CHAT, "loss=sft", *ANSWERS),
    "dpo": (*CHAT, "loss=dpo", *ANSWERS),
    "dpo, LoRA": (*CHAT, "loss=dpo", "model.use_peft=true", "trainer.reference=adapters", *ANSWERS),
    "tdpo": (*CHAT, "loss=tdpo", *ANSWERS),
    "tdpo, LoRA": (*CHAT, "loss=tdpo", "model.use_peft=true", "trainer.reference=adapters", *ANSWERS),
    "kto": (*CHAT, "loss=kto", "trainer.max_tokens=400"),
    "bradley-terry": (*CHAT, "loss=bradley-terry", *ANSWERS),
    "ppo": (*CHAT, "loss=ppo", "loss.value_max_grad_norm=null", "loss.epochs=2"),
    "ppo, own clip": (*CHAT, "loss=ppo"),
    "grpo": (*CHAT, "loss=grpo", "loss.beta=0.1", "loss.epochs=2"),
}
AVERAGED = ("rankpo, average", "gradient cache, average")
# what is refused: words of the one line that says so
REFUSED = {
    **{("ppo, own clip", strategy): "loss.value_max_grad_norm" for strategy in DEEPSPEED},
    **{(recipe, strategy): "trainer.ema averages" for recipe in AVERAGED for strategy in DEEPSPEED},
    **{("listwise reranker", strategy): "remove eval_datasets" for strategy in SPLIT},
}


def recipe_of(recipe: str, strategy: str) -> tuple[str, ...]:
    """What the strategy trains: a listwise reranker without the evaluation that it would refuse."""
    kept = RECIPES[recipe]
    refused = (recipe, strategy) in REFUSED
    return tuple(item for item in kept if not item.startswith("eval_datasets")) if refused else kept


def trained(strategy: str) -> list[tuple[str, str]]:
    """The cells of a strategy that train, be it without evaluation."""
    left_out = [recipe for recipe, refusing in REFUSED if refusing == strategy and recipe != "listwise reranker"]
    return [(recipe, strategy) for recipe in RECIPES if recipe not in left_out]


def installed(strategy: str) -> bool:
    return not strategy.startswith("deepspeed") or importlib.util.find_spec("deepspeed") is not None


def needs(strategy: str) -> None:
    """Skips the test where the strategy's package is missing."""
    if not installed(strategy):
        pytest.skip("deepspeed is not installed: pip install -e .[deepspeed]")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accelerate(strategy: str, *overrides: str, processes: int = 2, timeout: float = 300) -> subprocess.CompletedProcess:
    """`accelerate launch` as the README says it."""
    return _ended([*_launcher(strategy, processes), str(ROOT / "launch.py"), *overrides], timeout)


def launch_all(
    strategy: str,
    runs: Mapping[str, Sequence[str]],
    folder: Path,
    under: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> None:
    """Every run in one launch of two processes: folder/<name>. strategy: of accelerate_config, or torchrun.

    under: runs that another strategy makes, by name; their processes are told what `accelerate launch` would tell
    them. Fails the test where a run fails or hangs.
    """
    listed = [
        {
            "name": name,
            "overrides": [*overrides, *place(folder, name)],
            "environment": environment_of(under[name]) if under and name in under else None,
        }
        for name, overrides in runs.items()
    ]
    path = folder / f"{strategy}.json"
    path.write_text(json.dumps(listed))
    if strategy == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    else:
        program = _launcher(strategy, 2)
    done = _ended([*program, "-m", "tests.distributed.many", str(path)], timeout)
    assert done.returncode == 0, done.stdout


@cache
def environment_of(strategy: str) -> dict[str, str]:
    """What `accelerate launch` with this file of accelerate_config tells its processes, beside who they are."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = str(ROOT / "accelerate_config" / f"{strategy}.yaml")
    words = ["--config_file", file, "--num_processes", "2", "--main_process_port", "0", "launch.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(TOLD)}


def _launcher(strategy: str, processes: int) -> list[str]:
    return [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(ROOT / "accelerate_config" / f"{strategy}.yaml")),
        *("--num_processes", str(processes), "--main_process_port", str(free_port())),
    ]


def _ended(program: Sequence[str], timeout: float) -> subprocess.CompletedProcess:
    """The program's end; what hangs is ended with all its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # workers have sessions of their own: killing a group would leave them
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        output, _ = process.communicate()
        pytest.fail(f"hangs after {timeout} s: {' '.join(program)}\n{output}")
    return subprocess.CompletedProcess(program, process.returncode, output, "")


def place(folder: Path, name: str) -> tuple[str, str]:
    return f"exp_name='{name}'", f"cache_dir={folder}"


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of every evaluation. Without shares of rewards that are 0 but for rounding before the first update."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: row[name] for name in row if name.startswith("eval/") and "rewards/" not in name}
        for row in rows
        if any(name.startswith("eval/") for name in row)
    ]


def difference(ours: Path, expected: Path) -> str | None:
    """In what two runs differ: loss curve, what else is logged, evaluations, FINAL; None if in nothing."""
    try:
        assert_close(curve(ours), curve(expected), rtol=1e-5, atol=1e-6, msg=lambda text: f"loss curve: {text}")
        for name in LOGGED:
            logged = curve(ours, name), curve(expected, name)
            assert_close(*logged, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        found, wanted = evaluations(ours), evaluations(expected)
        assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=lambda text: f"evaluations: {text}")
        weights = final_weights(ours), final_weights(expected)
        assert_close(*weights, rtol=1e-4, atol=1e-5, msg=lambda text: f"FINAL: {text}")
    except AssertionError as error:
        return str(error)
    return None


def assert_two_are_one(cells: Sequence[tuple[str, str]], folder: Path, further: Mapping[str, Sequence[str]]) -> None:
    """Each (recipe, strategy) by two processes, folder/two, gives the recipe's run in this process, folder/one.

    One launch of the first cell's strategy makes all of them, and `further` runs, not compared, under it.
    """
    one, two = folder / "one", folder / "two"
    one.mkdir()
    two.mkdir()
    launched = cells[0][1]
    named = {f"{recipe} {strategy}": (recipe, strategy) for recipe, strategy in cells}
    recipes = {name: recipe_of(*cell) for name, cell in named.items()}
    done: dict[tuple[str, ...], Path] = {}
    for name, overrides in recipes.items():
        if overrides not in done:
            train(*overrides, *place(one, name))
            done[overrides] = one / name
            evaluated = 1 + STEPS // 2 if any(item.startswith("eval_datasets=[t") for item in overrides) else 0
            assert (len(curve(one / name)), len(evaluations(one / name))) == (STEPS, evaluated), name
    elsewhere = {name: strategy for name, (_, strategy) in named.items() if strategy != launched}
    launch_all(launched, {**further, **recipes}, two, elsewhere)
    differences = {name: difference(two / name, done[overrides]) for name, overrides in recipes.items()}
    assert not any(differences.values()), "\n".join(f"{name}: {text}" for name, text in differences.items() if text)
