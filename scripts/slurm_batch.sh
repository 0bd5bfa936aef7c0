#!/usr/bin/env bash
# One run on several nodes, continued after every preemption and time limit until it is finished:
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_batch.sh loss=rankpo model=minilm datasets=[jobs] exp_name=first
# What may be set in front (NAME=value sbatch …):
#   RANKPO_CONFIG      file of accelerate_config/ (default ddp.yaml)
#   RANKPO_PER_NODE    processes per node (default: GPUs per node, else 1)
#   RANKPO_ADDRESS     address of the first node (default: its Slurm name)
#   RANKPO_PYTHON      the interpreter (default: .venv/bin/python of the checkout that sbatch was called in)
#SBATCH --job-name=rankpo
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rankpo-%j.log
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"

# USR1 reaches every process of the step: launch.py notes it
RANKPO_SRUN="--kill-on-bad-exit=1" bash scripts/slurm_launch.sh "$@" resume=auto &
step=$!

signalled=
forward() { signalled=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"; }
trap forward USR1

while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends `wait`, not the step
wait "$step"
code=$?

# launch.py says 75 for "run me again", but launchers turn every code into 1: the signal is what tells the two apart
if [ -n "$signalled" ] && [ "$code" -ne 0 ]; then
  printf 'slurm_batch.sh: signalled; job %s goes back to the queue\n' "$SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
