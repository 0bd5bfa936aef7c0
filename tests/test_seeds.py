"""What users of the systems before this one type: files of their names, their launchers' files, their shells."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest
import yaml

from rankpo.errors import ConfigError
from rankpo.runs.launcher import second_fsdp, settle_auto
from tests.runs import CONTRASTIVE, ROOT, curve, train

# the file that RankLLM's accelerate configuration names, but for sizes
ZERO3 = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "sub_group_size": 1e9,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


def test_auto_of_a_deepspeed_file():
    config = {name: dict(value) if isinstance(value, dict) else value for name, value in ZERO3.items()}
    settle_auto(config)
    assert config == {
        "bf16": {"enabled": "auto"},  # accelerate knows the precision
        "zero_optimization": {"stage": 3, "sub_group_size": 1e9},
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,
    }


@pytest.mark.parametrize(("sharding", "reshards"), [("FULL_SHARD", "true"), ("SHARD_GRAD_OP", "false"), ("1", "true")])
def test_a_file_of_fsdps_first_version(sharding, reshards):
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": sharding,
        "FSDP_BACKWARD_PREFETCH": "BACKWARD_PRE",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
    }
    assert f"reshard_after_forward={reshards}" in second_fsdp(asked)
    assert asked["FSDP_VERSION"] == "2" and asked["FSDP_RESHARD_AFTER_FORWARD"] == reshards
    assert not {"FSDP_SHARDING_STRATEGY", "FSDP_BACKWARD_PREFETCH", "FSDP_USE_ORIG_PARAMS"} & set(asked)
    assert second_fsdp(asked) is None and second_fsdp({}) is None


def test_a_sharding_that_the_second_version_does_not_have():
    with pytest.raises(ConfigError, match="fsdp_sharding_strategy=HYBRID_SHARD is not supported; write FULL_SHARD"):
        second_fsdp({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"})


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("fsdp_2gpu", 2, 1), ("fsdp_4gpu", 4, 1), ("fsdp_8gpu", 8, 1), ("fsdp_2x8gpu", 16, 2)],
)
def test_files_of_accelerate_by_their_names(name, processes, machines):
    """Each is fsdp.yaml with its number of processes."""
    general = yaml.safe_load((ROOT / "accelerate_config" / "fsdp.yaml").read_text())
    found = yaml.safe_load((ROOT / "accelerate_config" / f"{name}.yaml").read_text())
    assert {key: found[key] for key in general} == general
    assert (found["num_processes"], found.get("num_machines", 1)) == (processes, machines)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_install_can_be_sourced(tmp_path, shell):
    """Options, folder and variables of the user's shell stay as they are, and the environment is active then."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on PATH")
    shutil.copy(ROOT / "install.sh", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("ACTIVE=yes\n")
    (tmp_path / "below").mkdir()
    line = '. ../install.sh help >/dev/null; echo "$? $ACTIVE ${PWD##*/}"; false; echo "alive ${UNSET_VARIABLE}"; set | grep -c _rankpo'
    done = subprocess.run([shell, "-c", line], cwd=tmp_path / "below", capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["0 yes below", "alive "], done.stderr
    wrong = subprocess.run(
        [shell, "-c", ". ../install.sh wrong; echo $?"], cwd=tmp_path / "below", capture_output=True, text=True
    )
    assert wrong.stdout == "1\n" and "unknown command 'wrong'" in wrong.stderr


def test_adamw_of_8_bits_follows_adamw(tmp_path):
    pytest.importorskip("bitsandbytes")
    curves = []
    for name in ("adamw", "adamw_8bit"):
        options = (
            *CONTRASTIVE,
            f"optimizer={name}",
            "optimizer.lr=1e-3",
            "trainer.max_steps=4",
            f"cache_dir={tmp_path}",
        )
        train(
            *options,
            f"exp_name={name}",
            "model.random.hidden_size=64",
            *(["optimizer.min_8bit_size=64"] * (name != "adamw")),
        )
        curves.append(curve(tmp_path / name))
    assert curves[0] != curves[1] and curves[1] == pytest.approx(curves[0], rel=0.02)


SRUN = """#!/bin/sh
[ "$1 $2" = "--overlap --ntasks-per-node=1" ] || exit 9
shift 2
for node in 0 1; do SLURM_NODEID=$node "$@"; done
"""


def test_a_launch_over_the_nodes_of_an_interactive_allocation(tmp_path):
    """srun stands for Slurm's: each node starts accelerate with its own rank, and all with one address and port."""
    for name, text in (
        ("srun", SRUN),
        ("scontrol", "#!/bin/sh\necho first\necho second\n"),
        ("python", '#!/bin/sh\necho "$@"\n'),
    ):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    given = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "x"}
    environment = {
        **os.environ,
        **given,
        "RANKPO_PYTHON": str(tmp_path / "python"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    script = [shutil.which("bash") or "bash", str(ROOT / "scripts" / "slurm_launch.sh"), "loss=rankpo", "exp_name=a b"]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (
        "--num_machines 2 --num_processes 8 --machine_rank 0 --main_process_ip first --main_process_port 20007" in first
    )
    assert first.replace("--machine_rank 0", "--machine_rank 1") == second
    assert first.endswith("launch.py loss=rankpo exp_name=a b")
    outside = subprocess.run(
        script, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert outside.returncode != 0 and "salloc --nodes=2" in outside.stderr
