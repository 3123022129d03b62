"""Several processes as one run: how they find each other, what is said when one is missing, how they leave together.

A run is one process unless something says otherwise, and then no network is touched. In this order:

  settings or MEDJAX_COORDINATOR, MEDJAX_PROCESSES, MEDJAX_PROCESS_ID    all three; the first two the same in all
  SLURM (inside srun), Open MPI, a TPU VM or GKE TPU pod                 found by JAX itself

Between CPUs JAX speaks gloo, its default there.

`jax.distributed.initialize` ends the process from C++ (status 134, no Python error) when its time is up. So it runs in
a thread with a longer time than ours, and the TimeoutError of `start` comes first. Once it has run:

  SIGTERM  is caught by JAX for `preempted`; a Python handler set before `start` is not called any more
  leaving  after a failure a process would wait minutes for the others to shut down too; `leave` and an uncaught
           exception end it at once, so that launchers see the failure
"""

import importlib.util
import os
import platform
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medjax.config import field

if TYPE_CHECKING:
    from jax.sharding import Mesh

CLEAN_STATUSES = (0, 75)  # done; stopped early by SIGTERM, every process at the same step
_VARIABLES = {"coordinator": "MEDJAX_COORDINATOR", "processes": "MEDJAX_PROCESSES", "process_id": "MEDJAX_PROCESS_ID"}
_JOINING = "medjax-distributed-start"  # name of the thread
_SPARE_SECONDS = 600  # by which JAX's own time is longer than ours


@dataclass(frozen=True)
class DistributedSettings:
    """Several processes as one run; nothing is needed for one process, nor on SLURM, Open MPI and TPU pods."""

    coordinator: str | None = field(None, help="HOST:PORT of process 0 as all others reach it; or MEDJAX_COORDINATOR")
    processes: int | None = field(None, help="how many processes make the run; or MEDJAX_PROCESSES")
    process_id: int | None = field(None, help="which one this is, from 0; or MEDJAX_PROCESS_ID")
    timeout_s: int = field(1800, help="seconds to wait until every process has started")

    def __post_init__(self):
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(
                    f"coordinator: got {self.coordinator!r}, expected HOST:PORT; write for example 10.0.0.1:8476."
                )
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: got {self.processes}, expected 1 or more.")
        if self.process_id is not None and not 0 <= self.process_id < (self.processes or self.process_id + 1):
            raise ValueError(
                f"process_id: got {self.process_id}, expected 0 to {(self.processes or 1) - 1}: ids count from 0."
            )
        if self.timeout_s < 1:
            raise ValueError(f"timeout_s: got {self.timeout_s}, expected 1 or more; 1800 s suit large clusters.")


def start(settings: DistributedSettings | None = None, environment: Mapping[str, str] = os.environ) -> bool:
    """Join the processes of this run; return whether there are several. To be called before JAX computes anything.

    settings  win over the environment; each of the three values may come from either
    Does nothing, and asks nothing of the network, where nothing says that the run has several processes, or when the
    run has been joined already.

    Raises ValueError for settings that do not fit together, TimeoutError when not all have started in time; its message
    says what was waited for and what to check. RuntimeError when JAX has computed something before.
    """
    import jax

    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    settings = _completed(settings or DistributedSettings(), environment)
    cluster = "" if settings.processes is not None else _cluster(environment)
    if not cluster and (settings.processes or 1) == 1:
        return False
    arguments: dict[str, Any] = {"local_device_ids": _slurm_devices(environment) if cluster == "SLURM" else None}
    if not cluster:
        arguments = {
            "coordinator_address": settings.coordinator,
            "num_processes": settings.processes,
            "process_id": settings.process_id,
            "cluster_detection_method": "deactivate",
        }
        if settings.process_id == 0:
            _check_port_is_free(settings)
    print(f"{_here(settings, cluster)} waits for all, up to {settings.timeout_s} s", file=sys.stderr, flush=True)
    failed: list[BaseException] = []

    def join() -> None:
        try:
            jax.distributed.initialize(initialization_timeout=settings.timeout_s + _SPARE_SECONDS, **arguments)
        except BaseException as error:
            failed.append(error)

    joining = threading.Thread(target=join, name=_JOINING, daemon=True)
    joining.start()
    looking = min(10.0, settings.timeout_s / 4)  # seconds before the end, when the others have not given up yet
    joining.join(settings.timeout_s - looking)  # in a thread also so that Ctrl-C is heard meanwhile
    diagnosis = _diagnosis(settings) if joining.is_alive() else ""
    joining.join(looking)
    if joining.is_alive():
        raise TimeoutError(_missing(settings, cluster, environment, diagnosis))
    if failed and isinstance(failed[0], ValueError):
        raise ValueError(
            f"distributed: {cluster or 'settings'}: JAX cannot tell the processes of this run ({failed[0]}); set "
            f"{', '.join(_VARIABLES.values())} in each process."
        ) from failed[0]
    if failed:
        raise failed[0]
    sys.excepthook = _ending(sys.excepthook)
    return jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes what only one may write: process 0."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here; all must give the same name. AssertionError when they do not."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def preempted(step: int) -> bool:
    """Whether all processes are to stop after this step, since one has got SIGTERM; True at the same step in all.

    To be asked at every step by every process. In a run of one process always False: there a Python handler is heard.
    """
    import jax
    from jax.experimental import multihost_utils

    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def banner(mesh: "Mesh") -> str:
    """What this process is: "process 1 of 2 on HOST: 4 local of 8 devices (cpu), mesh data=2,fsdp=4"; ids from 0."""
    import jax

    sizes = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1] or ["data=1"]
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {platform.node()}: {jax.local_device_count()} "
        f"local of {jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {','.join(sizes)}"
    )


def leave(status: int) -> int:
    """Return the exit status of a command, after leaving the run: the last thing that its main function does.

    0 and 75 shut down in step with the other processes. After another status, or when `start` was not through, the
    others cannot be waited for: this process ends at once and the call does not return, unless the run is of one.
    """
    import jax

    if not jax.distributed.is_initialized():
        return status
    waiting = any(
        thread.name == _JOINING for thread in threading.enumerate()
    )  # a client that never joined cannot leave
    if status not in CLEAN_STATUSES or waiting:
        _end(status)
    jax.distributed.shutdown()
    return status


def _completed(settings: DistributedSettings, environment: Mapping[str, str]) -> DistributedSettings:
    """The settings, with what they leave open taken from the environment: all of the three values or none."""
    given: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        text = environment.get(variable, "")
        if getattr(settings, name) is not None or not text:
            continue
        if name != "coordinator" and not text.isdigit():
            raise ValueError(
                f"{variable}: got {text!r}, expected a whole number; set it to the {name} of this process."
            )
        given[name] = text if name == "coordinator" else int(text)
    settings = replace(settings, **given)
    missing = [name for name in _VARIABLES if getattr(settings, name) is None]
    if len(missing) == len(_VARIABLES) or settings.processes == 1:
        return settings
    if missing:
        there = next(name for name in _VARIABLES if name not in missing)
        raise ValueError(
            f"distributed: got {there}={getattr(settings, there)} but no {' and no '.join(missing)}, expected all "
            f"three; set {', '.join(_VARIABLES[name] for name in missing)} in each process."
        )
    return settings


def _cluster(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """What started several processes in a way that JAX can find out, judged without the network; "" if nothing did."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_STEP_NODELIST" in environment:
        return "SLURM"
    if tasks != "1":
        print(f"SLURM has {tasks} tasks here, but this process was not started by srun: it runs alone", file=sys.stderr)
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    if "TPU_SKIP_MDS_QUERY" in environment or environment.get("JAX_PLATFORMS", "tpu") in ("cpu", "cuda"):
        return ""
    chips = any((root / path).exists() for path in ("dev/accel0", "dev/vfio/0"))
    return "TPU" if chips and importlib.util.find_spec("libtpu") else ""


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node where SLURM starts one task a node: JAX itself would give that task the first GPU only."""
    one_a_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return (
        list(range(int(gpus))) if one_a_node and gpus.isdigit() and "JAX_LOCAL_DEVICE_IDS" not in environment else None
    )


def _check_port_is_free(settings: DistributedSettings) -> None:
    # gRPC shares ports: a second process 0 would start, and both be ended from C++ without a word on the reason
    port = int(str(settings.coordinator).rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"distributed.coordinator: got {settings.coordinator}, but port {port} cannot be used here "
                f"({error.strerror}); is another process 0 running? End it, or choose another port."
            ) from None


def _here(settings: DistributedSettings, cluster: str) -> str:
    if cluster:
        return f"this process on {platform.node()} (started by {cluster})"
    return f"process {settings.process_id} of {settings.processes} on {platform.node()} at {settings.coordinator}"


def _missing(settings: DistributedSettings, cluster: str, environment: Mapping[str, str], diagnosis: str) -> str:
    """The message when not all processes have started in time."""
    checks = ["are all processes running, on every machine, with the same command?"]
    if not cluster:
        host, _, port = str(settings.coordinator).rpartition(":")
        last = (settings.processes or 1) - 1
        checks += [
            f"has each MEDJAX_PROCESSES={settings.processes}, and its own MEDJAX_PROCESS_ID, each of 0 to {last} once?",
            f"is {host} the machine of process 0, by a name or address that every machine knows?",
            f"is port {port} on it open for the others (firewall)?",
        ]
    else:
        checks.append("can the machines reach each other (firewall, network of the cluster)?")
    if proxies := sorted(name for name in environment if name.lower() in ("http_proxy", "https_proxy", "grpc_proxy")):
        checks.append(f"{', '.join(proxies)} may lead the connection astray: unset, or add the machines to no_proxy")
    checks.append(f"if machines start slowly, raise distributed.timeout_s (now {settings.timeout_s})")
    return "\n  - ".join(
        [
            f"distributed: {_here(settings, cluster)} waited {settings.timeout_s} s in vain for the run's other "
            f"processes{diagnosis}. Check:",
            *checks,
        ]
    )


def _diagnosis(settings: DistributedSettings) -> str:
    """What a connection to process 0 tells."""
    if settings.coordinator is None:
        return ""
    if settings.process_id == 0:
        return ": not all of them have called in"
    host, _, port = settings.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except socket.gaierror:
        return f": the name {host} is not known here"
    except ConnectionRefusedError:
        return f": {host} answers, but nothing listens on port {port}, so process 0 is not running"
    except OSError as error:
        return f": {settings.coordinator} cannot be reached ({error.strerror or error})"
    return ": process 0 listens, so another process is missing"


def _ending(previous: Any) -> Any:
    """An excepthook that ends the process after the previous one has shown the exception."""

    def end(*exception: Any) -> None:
        previous(*exception)
        _end(1)

    return end


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
