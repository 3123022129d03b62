#!/usr/bin/env bash
# Eight fake CPU devices in one process: try a mesh before there is one.
#   launch/local_8device.sh configs/sft/smollm2_lora_cpu.toml --mesh data=2,fsdp=4
#
# Numbers and checkpoints are those of eight real devices; it is slower than one device, as all share the same cores.
# Set: DEVICES (default 8)
set -euo pipefail

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-8}"

exec \
  python -m medjax.train "$@"
