#!/usr/bin/env bash
# One evaluation as a SLURM job array: every task asks its share of the items, the last one writes the results.
#   sbatch --array 1-8 launch/eval_array.sh --model DIR --tasks igakuqa --out runs/eval/mine
#
# Set here or as options of sbatch: partition, account, time, GPUs a task. CPU cluster: drop the GPU line.
# The environment of the shell that calls sbatch is used on the nodes: activate yours first, or set VENV.
#SBATCH --job-name=medjax-eval
#SBATCH --array=1-4
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A task that is lost is sent again alone: sbatch --array 3, with SHARD=3/8 before the command, and the same arguments.
set -euo pipefail

# shellcheck source=/dev/null
[[ -z ${VENV:-} ]] || source "$VENV/bin/activate"

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

exec \
  python -m medjax.eval "$@" --shard "${SHARD:-auto}"
