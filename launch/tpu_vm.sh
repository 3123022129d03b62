#!/usr/bin/env bash
# All workers of a Cloud TPU VM (one slice), from your own machine with gcloud:
#   export TPU=my-v5e-16 ZONE=us-west4-a PROJECT=my-project
#   launch/tpu_vm.sh configs/sft/llama3_8b_lora.toml --out /mnt/bucket/runs/llama3
#
# Once, on every worker (the same commit everywhere):
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
#     --command 'git clone REPOSITORY medjax && python3 -m venv venv && venv/bin/pip install -e "medjax[tpu]"'
#
# Set:
#   TPU, ZONE, PROJECT   as in `gcloud compute tpus tpu-vm list`
#   FOLDER, VENV         the repository and virtual environment on the workers (default ~/medjax and ~/venv)
#   --out                a folder that all workers see (Filestore, or a mounted bucket with hierarchical namespace): every worker saves its part
# A terminal that closes ends the run: call this inside tmux. The same command goes on where the run was.
set -euo pipefail

if [[ -z ${ON_WORKER:-} ]]; then
  : "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
  printf -v arguments '%q ' "$@"
  # shellcheck disable=SC2088 # ~ is the home folder on the workers
  exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} --worker=all \
    --command "cd ${FOLDER:-~/medjax} && source ${VENV:-~/venv}/bin/activate && ON_WORKER=1 launch/tpu_vm.sh $arguments"
fi

# a run that is left over holds the chips, and the new one would fail with "TPU is already in use"
if pgrep -f "^python -m medjax[.]train" >/dev/null; then
  echo "tpu_vm.sh: $(hostname): medjax.train is running here already; end it first (pkill -f medjax.train)" >&2
  exit 2
fi

exec \
  python -m medjax.train "$@"
