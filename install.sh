#!/usr/bin/env bash
# ./install.sh          the environment: .venv in this folder, with the extras that this machine can use
# ./install.sh demo     the main job: contrastive training, RankPO, evaluation, one table; demo full: three seeds
# ./install.sh test     linters, types, the documentation and the suite; further arguments go to pytest
# . install.sh          the environment, and then activates it in your shell (bash, zsh)
if (return 0 2>/dev/null); then # sourced: options, variables and folder of the user's shell stay as they are
  _rankpo_file=${BASH_SOURCE:-}
  if [ -z "$_rankpo_file" ] && [ -n "${ZSH_VERSION:-}" ]; then eval '_rankpo_file=${(%):-%x}'; fi
  _rankpo_folder=$(CDPATH='' cd -- "$(dirname -- "${_rankpo_file:-./install.sh}")" && pwd)
  bash "$_rankpo_folder/install.sh" "$@"
  _rankpo_code=$?
  if [ "$_rankpo_code" = 0 ] && [ -f "$_rankpo_folder/.venv/bin/activate" ]; then . "$_rankpo_folder/.venv/bin/activate"; fi
  unset _rankpo_file _rankpo_folder
  return "$_rankpo_code"
fi
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv
python=$venv/bin/python

fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${RANKPO_PYTHON:-} python3.13 python3.12 python3.11 python3.14 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
       "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      command -v "$candidate"; return
    fi
  done
  fail "needs Python 3.11 to 3.14 on PATH (or RANKPO_PYTHON=/path/to/python)"
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

# Without a GPU, a CPU build of torch saves gigabytes. RANKPO_TORCH_INDEX names an index that has one; otherwise the
# PyTorch project's own index is used if it answers within 3 seconds, and pip's configuration decides if it does not.
torch_index() {
  if [ -n "${RANKPO_TORCH_INDEX:-}" ]; then
    printf '%s\n' --extra-index-url "$RANKPO_TORCH_INDEX"
  elif ! has_gpu && [ "$(uname -s)" = Linux ]; then
    local index=https://download.pytorch.org/whl/cpu
    if "$python" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=3)" >/dev/null 2>&1; then
      printf '%s\n' --extra-index-url "$index"
    fi
  fi
}

install() { # install EXTRAS…: does nothing if the same was installed before from the same files
  local extras stamp wanted
  extras=$(printf '%s\n' "$@" | sort -u | paste -sd, -)
  if has_gpu; then extras="$extras,deepspeed"; fi
  stamp=$venv/.installed-${extras//,/-}
  wanted=$(cat pyproject.toml setup.py constraints.txt install.sh | cksum)
  [ -x "$python" ] || { "$(find_python)" -m venv $venv || fail "cannot make $venv; on Debian and Ubuntu: apt install python3-venv"; }
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  local torch index
  torch=$(grep '^torch==' constraints.txt)
  mapfile -t index < <(torch_index)
  "$python" -m pip install --quiet "${index[@]}" "$torch"
  "$python" -m pip install --quiet "${index[@]}" -c constraints.txt -e ".[$extras]"
  if has_gpu; then # compiled for this machine; training works without them
    "$python" -m pip install --quiet --no-build-isolation flash-attn || printf 'install.sh: flash-attn could not be built; attention uses sdpa\n' >&2
    "$python" -m pip uninstall --quiet --yes faiss-cpu # the two are one module: never both
    "$python" -m pip install --quiet faiss-gpu-cu12 || {
      printf 'install.sh: no GPU faiss for this machine; faiss searches on the CPU\n' >&2
      "$python" -m pip install --quiet -c constraints.txt faiss-cpu
    }
  fi
  printf '%s' "$wanted" > "$stamp"
}

case "${1:-}" in
  "") install demo faiss; printf 'ready: %s\n' "source $venv/bin/activate" ;;
  demo) shift; install demo; exec "$python" -m rankpo.tasks.demo "$@" ;;
  test)
    shift
    install demo st faiss zstd search quantized slurm dev
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy rankpo launch.py
    $venv/bin/lint-imports --no-logo
    NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet
    export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
    exec "$python" -m pytest -n 2 "$@"
    ;;
  help | -h | --help) sed -n '2,5s/^# //p' "$0" ;;
  *) fail "unknown command '$1'; allowed: nothing, demo, test, help" ;;
esac
