"""What accelerate does alone on CPUs, for which `distributed._accelerator` exists: each goes red once it is no longer so.

And what is said where fewer processes work than were asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rankpo import distributed
from rankpo.losses.dpo import DPOLoss
from rankpo.trainers.strategies import unfit
from tests.distributed.strategies import free_port, needs
from tests.runs import ROOT

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
    outputs = [process.communicate(timeout=100)[0] for process in processes]
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
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "2 processes were asked for and this one is alone" in done.stderr
    assert "torchrun --nproc-per-node 2 launch.py" in done.stderr
    assert not (tmp_path / "alone").exists()


def test_processes_asked(monkeypatch):
    assert distributed.processes_asked({"WORLD_SIZE": "4"}) == 4
    # srun with tasks that know nothing of each other
    assert distributed.processes_asked({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}) == 3
    # the batch script of a job of three tasks is none of them
    assert distributed.processes_asked({"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"}) == 1


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["python", "/bin/accelerate", "launch", "--num_processes", "2", "launch.py"], 2),
        (["python", "/bin/accelerate", "launch", "--num-processes=3", "launch.py", "--num_processes", "9"], 3),
        (["python", "/bin/accelerate", "launch", "launch.py"], 1),
        (["bash", "-c", "python launch.py --num_processes 2"], 1),
    ],
)
def test_what_a_launcher_was_asked_for(words, asked):
    assert distributed._asked_on(SimpleNamespace(cmdline=lambda: words)) == asked


def test_what_a_configuration_file_asks_for(tmp_path):
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    words = ["python", "/bin/accelerate", "launch", f"--config_file={tmp_path}/two.yaml", "launch.py"]
    assert distributed._asked_on(SimpleNamespace(cmdline=lambda: words)) == 2


def test_what_cannot_work_is_refused_with_what_can():
    class Critic:
        value_max_grad_norm = 0.1

    class Tokens(DPOLoss):
        def needs_live_reference(self, kind: str) -> bool:
            return True

    dpo, tokens = DPOLoss(beta=0.1), Tokens(beta=0.1)
    assert "trainer.reference=live" in str(unfit("FSDP", "causal_lm", tokens, adapters=True, evaluated=True))
    assert unfit("DEEPSPEED-2", "causal_lm", tokens, adapters=True, evaluated=True) is None
    assert "deepspeed_zero2.yaml" in str(unfit("DEEPSPEED-3", "listwise", dpo, adapters=False, evaluated=True))
    assert unfit("DEEPSPEED-3", "listwise", dpo, adapters=False, evaluated=False) is None
    assert "fsdp.yaml" in str(unfit("DEEPSPEED-1", "causal_lm", Critic(), adapters=False, evaluated=False))
    assert unfit("MULTI_GPU", "listwise", Critic(), adapters=True, evaluated=True) is None
