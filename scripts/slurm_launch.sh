#!/usr/bin/env bash
# One launch over all nodes of an allocation, interactive or not; scripts/slurm_batch.sh calls it too:
#   salloc --nodes=2 --gpus-per-node=8 --time=2:00:00
#   scripts/slurm_launch.sh loss=rankpo model=minilm datasets=jobs exp_name=first
# What may be set in front (NAME=value scripts/slurm_launch.sh …):
#   RANKPO_CONFIG      file of accelerate_config/ (default ddp.yaml)
#   RANKPO_PER_NODE    processes per node (default: GPUs per node, else 1)
#   RANKPO_ADDRESS     address of the first node (default: its Slurm name)
#   RANKPO_PYTHON      the interpreter (default: .venv/bin/python of this folder)
#   RANKPO_SRUN        further options of srun (default: --overlap, for a shell that is a step itself)
set -euo pipefail
: "${SLURM_JOB_ID:?slurm_launch.sh runs inside an allocation: salloc --nodes=2 --gpus-per-node=8 first}"

# once, here: tasks that choose an address or a port for themselves do not meet
export RANKPO_ADDRESS=${RANKPO_ADDRESS:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export RANKPO_PORT=$((20000 + SLURM_JOB_ID % 20000))
export RANKPO_PER_NODE=${RANKPO_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export RANKPO_CONFIG=${RANKPO_CONFIG:-accelerate_config/ddp.yaml}
export RANKPO_PYTHON=${RANKPO_PYTHON:-$PWD/.venv/bin/python}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline} # nothing may wait for a network or a terminal

# single quotes: each node must read its own SLURM_NODEID, not that of this shell. The launcher above launch.py must not
# die of the USR1 that asks for a checkpoint
# shellcheck disable=SC2086
exec srun ${RANKPO_SRUN:---overlap --ntasks-per-node=1} bash -c '
  trap "" USR1
  exec "$RANKPO_PYTHON" -m accelerate.commands.accelerate_cli launch --config_file "$RANKPO_CONFIG" \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * RANKPO_PER_NODE)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$RANKPO_ADDRESS" --main_process_port "$RANKPO_PORT" \
    launch.py "$@"' launch "$@"
