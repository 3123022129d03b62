#!/usr/bin/env bash
# One machine with several GPUs: one process drives them all.
#   launch/multi_gpu.sh configs/sft/llama3_8b_lora.toml
#
# Set, where the defaults do not fit:
#   CUDA_VISIBLE_DEVICES            which GPUs, for instance 0,1,2,3 (default: all)
#   --mesh data=2,fsdp=4            how the GPUs share the work; see docs/launch.md
#   XLA_PYTHON_CLIENT_MEM_FRACTION  share of each GPU's memory that JAX takes at the start
# Needs: pip install "medjax[gpu]"
set -euo pipefail

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

# one process, even inside a SLURM job or with variables of another run about
unset SLURM_NTASKS MEDJAX_COORDINATOR MEDJAX_PROCESSES MEDJAX_PROCESS_ID

exec \
  python -m medjax.train "$@"
