"""What accelerate does alone on CPUs, for which `distributed._accelerator` exists: each goes red once it is no longer so.

And what is said where a run would not be what its launcher was asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.losses.dpo import DPOLoss
from rankpo.runs import launcher, processes
from rankpo.runs.launcher import contradiction, processes_asked
from rankpo.runs.processes import LaunchError, make_accelerator
from rankpo.tasks.optimizer import make_optimizer_of
from rankpo.trainers.strategies.choose import unfit
from tests.distributed.strategies import ROOT, free_port, needs
from tests.runs import reset

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs")


def stock(tmp_path, body: str, **environment: str) -> str:
    """What rank 0 of two processes says that use accelerate alone."""
    program = tmp_path / "stock.py"
    program.write_text(
        "import os\nfrom accelerate import Accelerator\nfrom accelerate.utils import InitProcessGroupKwargs\n"
        f"{body}\n"
        "if os.environ['RANK'] == '0': print('SEEN', seen, flush=True)\nos._exit(0)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={
                **os.environ,
                **environment,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": environment["MASTER_PORT"],
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return next((line for line in outputs[0].splitlines() if line.startswith("SEEN")), outputs[0])


def test_fsdp_on_cpus_becomes_ddp(tmp_path):
    body = "accelerator = Accelerator(cpu=True)\nseen = accelerator.distributed_type.value"
    more = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "MASTER_PORT": str(free_port())}
    assert stock(tmp_path, body, **more) == "SEEN MULTI_CPU"


def test_zero3_has_transformers_build_parts_though_it_is_told_not_to(tmp_path):
    needs("deepspeed_zero3")
    body = (
        "import deepspeed\ndeepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False\n"
        "accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend='gloo')])\n"
        "from transformers.integrations import is_deepspeed_zero3_enabled\nseen = is_deepspeed_zero3_enabled()"
    )
    more = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "DS_ACCELERATOR": "cpu",
        "MASTER_PORT": str(free_port()),
    }
    assert stock(tmp_path, body, **more) == "SEEN True"


@pytest.mark.slow
def test_accelerate_starts_one_process_where_two_are_asked_for_and_the_run_stops(tmp_path):
    """--cpu, as MULTI_CPU, takes the plain launcher: the run knows from the launcher's command line alone."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"),
            *("launch.py", "loss=contrastive", "model=tiny_bert", "datasets=[toy_contrastive]", "exp_name=alone"),
            f"cache_dir={tmp_path}",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "2 processes were asked for and this one is alone" in done.stderr
    assert "torchrun --nproc-per-node 2 launch.py" in done.stderr
    assert not (tmp_path / "alone").exists()


def test_processes_asked():
    assert processes_asked({"WORLD_SIZE": "4"}) == 4
    # srun with tasks that know nothing of each other
    assert processes_asked({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}) == 3
    # the batch script of a job of three tasks is none of them
    assert processes_asked({"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"}) == 1
    assert processes_asked({"OMPI_COMM_WORLD_SIZE": "2"}) == processes_asked({"PMI_SIZE": "2"}) == 2
    assert processes_asked({}) == 1


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["python", "/bin/accelerate", "launch", "--num_processes", "2", "launch.py"], 2),
        (["python", "/bin/accelerate", "launch", "--num-processes=3", "launch.py", "--num_processes", "9"], 3),
        (["python", "/bin/accelerate-launch", "--num_processes", "2", "launch.py"], 2),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "2", "launch.py"], 2),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "launch.py"], 2),
        (["python", "/bin/accelerate", "launch", "--cpu", "launch.py"], 1),
        (["bash", "-c", "python launch.py --num_processes 2"], 1),
    ],
)
def test_what_a_launcher_was_asked_for(words, asked):
    assert launcher._asked_on(SimpleNamespace(cmdline=lambda: words)) == asked


def test_what_a_configuration_file_asks_for(tmp_path, monkeypatch):
    """The one that is named, or the one that `accelerate config` wrote, which --cpu leaves aside."""
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    words = ["python", "/bin/accelerate", "launch"]

    def asked(*options: str) -> int:
        return launcher._asked_on(SimpleNamespace(cmdline=lambda: [*words, *options, "launch.py"]))

    assert asked(f"--config_file={tmp_path}/two.yaml") == 2
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "two.yaml"))
    assert (asked(), asked("--quiet"), asked("--cpu"), asked("--num_processes", "3")) == (2, 2, 1, 3)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    assert asked() == 1


@pytest.mark.parametrize(
    ("environment", "precision", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "fp32", "mixed_precision=bf16 contradicts trainer.precision=fp32"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "bf16", "mixed_precision=fp8 contradicts trainer.precision=bf16"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "fp32", "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "fp32", "parallelism_config is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "fp32", "dynamo_backend is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO"}, "bf16", None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "fp16", None),
        ({}, "fp32", None),
    ],
)
def test_what_accelerate_was_told_and_the_run_would_not_do(environment, precision, said):
    found = contradiction(environment, precision)
    assert found is None if said is None else said in str(found)


def test_an_accumulation_of_accelerate_is_refused(monkeypatch):
    """It would divide every gradient by 4, and no message says so."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(LaunchError, match="gradient_accumulation_steps must be 1, got 4"):
        make_accelerator()
    GradientState._reset_state()


def test_precisions_that_no_device_here_has():
    with pytest.raises(ConfigError, match=r"trainer\.precision=fp16 needs a GPU and there is none"):
        make_accelerator("fp16")


def test_what_cannot_work_is_refused_with_what_can():
    class Critic:
        value_max_grad_norm = 0.1

    dpo, lists, tokens = DPOLoss(beta=0.1), frozenset({"lists"}), frozenset({"token_logps"})
    assert "deepspeed_zero2.yaml" in str(unfit("DEEPSPEED-3", lists, dpo, evaluated=True))
    assert "deepspeed_zero2.yaml" in str(unfit("FSDP", lists, dpo, evaluated=True))
    assert unfit("DEEPSPEED-3", lists, dpo, evaluated=False) is None
    assert unfit("DEEPSPEED-2", lists, dpo, evaluated=True) is None
    assert "fsdp.yaml" in str(unfit("DEEPSPEED-1", tokens, Critic(), evaluated=False))
    assert unfit("FSDP", tokens, Critic(), evaluated=False) is None
    assert unfit("MULTI_GPU", lists, Critic(), evaluated=True) is None


def test_autocast_before_preparation_keeps_fsdp(monkeypatch):
    """The stock Accelerator forgets it; a rank that plans its memory first would then wait for the others for ever."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    reset()
    made = processes._accelerator("FSDP", "no", timedelta(minutes=1))
    with made.autocast():
        assert made.distributed_type.value == "FSDP"
    assert made.distributed_type.value == "FSDP"
    with type(made).autocast(made):
        assert made.distributed_type.value != "FSDP"
    reset()


def test_fused_updates_are_for_optimizers_that_shard():
    """torch has no sharding of aten._fused_sgd_, so that SGD under FSDP ended at its first update."""
    model, data = "model=tiny_bert", "datasets=[toy_pairs]"
    for words, fused in (
        (["optimizer=adamw"], True),
        (["optimizer=sgd"], False),
        (["optimizer=adamw", "+optimizer.foreach=true"], False),
    ):
        made = make_optimizer_of(compose([model, data, *words]), [torch.nn.Parameter(torch.zeros(2, 2))])
        assert bool(made.defaults.get("fused")) is fused
