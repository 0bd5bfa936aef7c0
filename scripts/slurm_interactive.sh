#!/usr/bin/env bash
# A shell on one node, with the environment of this checkout:
#   scripts/slurm_interactive.sh --gpus-per-node=1 --time=2:00:00
# Further arguments go to srun; launch.py then runs as on any machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec srun --nodes=1 --ntasks-per-node=1 --pty "$@" bash --rcfile .venv/bin/activate -i
