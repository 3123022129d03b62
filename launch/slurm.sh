#!/usr/bin/env bash
# A SLURM cluster, one process a node, each with all GPUs of its node. Run from the root of the repository:
#   sbatch --nodes 4 launch/slurm.sh configs/sft/llama2_70b_qlora.toml --mesh fsdp=32
#
# Set here or as options of sbatch: partition, account, time, nodes, GPUs a node. CPU cluster: drop the GPU line.
# The environment of the shell that calls sbatch is used on the nodes: activate yours first, or set VENV.
#SBATCH --job-name=medjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# --signal: five minutes before the time is up the run saves and ends with status 75; submit the same command again to
# go on. --requeue: after a node failure SLURM does that itself.
set -euo pipefail

# shellcheck source=/dev/null
[[ -z ${VENV:-} ]] || source "$VENV/bin/activate"

# JAX finds coordinator, process count and id from what srun sets; NCCL: name the fast network if it is not found
# export NCCL_SOCKET_IFNAME=ib0
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

# --kill-on-bad-exit: one failure ends all processes, which would wait for it otherwise
exec srun --kill-on-bad-exit=1 --wait=60 --label \
  python -m medjax.train "$@"
