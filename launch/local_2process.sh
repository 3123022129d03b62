#!/usr/bin/env bash
# Two processes with four fake CPU devices each, joined over loopback (gloo): all that a cluster does, on a laptop.
#   launch/local_2process.sh configs/sft/smollm2_lora_cpu.toml --mesh data=2,fsdp=4
#
# When one process fails the other is ended. Exit status: the first failure, else 75 (stopped early, same command goes
# on) if either said so, else 0. Both write to this terminal; process 0 alone writes the run folder.
# Set: DEVICES, devices a process (default 4); PORT, on loopback (default: a free one)
set -euo pipefail

if [[ -z ${MEDJAX_PROCESS_ID:-} ]]; then # the parent; the two processes start this script again
  free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
  port=${PORT:-$(python -c "$free_port")}
  export MEDJAX_COORDINATOR=127.0.0.1:$port MEDJAX_PROCESSES=2
  pids=()
  for id in 0 1; do
    MEDJAX_PROCESS_ID=$id bash "$0" "$@" &
    pids+=($!)
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

  running() { kill -0 "$1" 2>/dev/null; }
  while running "${pids[0]}" && running "${pids[1]}"; do sleep 0.2; done
  first=0 && running "${pids[0]}" && first=1
  worst=0 && { wait "${pids[first]}" || worst=$?; }
  other=${pids[1 - first]}
  if ((worst != 0 && worst != 75)); then
    echo "local_2process.sh: process $first ended with status $worst; ending the other one" >&2
    kill -TERM "$other" 2>/dev/null || true
    for _ in {1..10}; do running "$other" && sleep 0.2; done # JAX keeps SIGTERM for itself: then comes SIGKILL
    kill -KILL "$other" 2>/dev/null || true
    wait "$other" || true
    exit "$worst"
  fi
  while running "$other"; do sleep 0.2; done
  last=0 && { wait "$other" || last=$?; }
  exit "$((last != 0 ? last : worst))"
fi

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"

exec \
  python -m medjax.train "$@"
