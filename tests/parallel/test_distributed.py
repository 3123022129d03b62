"""Processes that find each other, and what each is told when they do not: with real processes over loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from medjax.parallel import distributed
from medjax.parallel.distributed import DistributedSettings, start
from medjax.parallel.mesh import make_mesh

ROOT = Path(__file__).resolve().parents[2]

# what one process of the tests does; its first argument says how it behaves
PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for jobs in the background
from medjax.parallel import distributed
mode = sys.argv[1]
try:
    several = [distributed.start(distributed.DistributedSettings(timeout_s=int(sys.argv[2]))) for _ in range(2)]
except (TimeoutError, ValueError) as error:
    print(type(error).__name__, error)
    sys.exit(distributed.leave(1))
except KeyboardInterrupt:
    sys.exit(distributed.leave(75))
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from medjax.parallel.mesh import make_mesh
mesh = make_mesh("data=2,fsdp=4")
print(several, distributed.banner(mesh), distributed.is_main())
distributed.barrier("ready")
ones = jax.make_array_from_callback((8,), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),
                                    lambda at: jnp.arange(8.0)[at])
print("sum", float(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones)), flush=True)
if mode == "error" and jax.process_index() == 1:
    raise KeyError("lost")
if mode == "status" and jax.process_index() == 1:
    sys.exit(distributed.leave(2))
if mode == "sigterm":
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    step = 0
    while not distributed.preempted(step):
        time.sleep(0.005)
        step += 1
    print("stopped after", step)
    sys.exit(distributed.leave(75))
if mode in ("error", "status"):
    distributed.barrier("never")
sys.exit(distributed.leave(0))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes(mode, ids, *, timeout_s=60, coordinator=None, count=2):
    """Run a process for each id; return status, stdout and stderr of each."""
    coordinator = coordinator or f"127.0.0.1:{free_port()}"
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    common = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "MEDJAX_COORDINATOR": coordinator,
        "MEDJAX_PROCESSES": str(count),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, str(timeout_s)],
            env={**common, "MEDJAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ids
    ]
    try:
        texts = [process.communicate(timeout=90) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(running, texts, strict=True)]


def test_two_processes_join_compute_and_leave():
    host = re.escape(os.uname().nodename)
    for number, (status, out, err) in enumerate(processes("plain", (0, 1))):
        assert status == 0, err
        # Gloo writes to the same stream, its threads into one another's lines
        lines = [line for line in out.splitlines() if line.startswith(("[True", "sum"))]
        assert re.fullmatch(
            rf"\[True, True\] process {number} of 2 on {host}: 4 local of 8 devices \(cpu\), mesh data=2,fsdp=4 "
            rf"{number == 0}",
            lines[0],
        )
        assert lines[1:] == ["sum 28.0"]
        assert re.match(rf"process {number} of 2 on {host} at 127.0.0.1:\d+ waits for all, up to 60 s\n", err)


@pytest.mark.parametrize(("mode", "expected", "told"), [("error", 1, "KeyError: 'lost'"), ("status", 2, "")])
def test_a_process_that_fails_ends_at_once_with_its_status(mode, expected, told):
    (other, _, _), (status, _, err) = processes(mode, (0, 1))
    assert status == expected
    assert told in err
    assert "Shutdown barrier" not in err
    assert other != 0


def test_sigterm_for_one_process_stops_all_after_the_same_step():
    ended = processes("sigterm", (0, 1))
    assert [status for status, _, _ in ended] == [75, 75]
    steps = {re.search(r"stopped after (\d+)", out)[1] for _, out, _ in ended}
    assert len(steps) == 1


def test_a_process_alone_says_what_it_waited_for_and_what_to_check():
    ((status, out, err),) = processes("plain", (0,), timeout_s=2)
    assert status == 1
    assert "Check failure stack trace" not in err  # JAX's own end, from C++
    first, *checks = out.splitlines()
    assert re.fullmatch(
        r"TimeoutError distributed: process 0 of 2 on \S+ at 127.0.0.1:\d+ waited 2 s in vain for the run's "
        r"other processes: not all of them have called in. Check:",
        first,
    )
    assert [check.split()[1] for check in checks] == ["are", "has", "is", "is", "if"]
    assert "MEDJAX_PROCESSES=2, and its own MEDJAX_PROCESS_ID, each of 0 to 1 once?" in out
    assert "raise distributed.timeout_s (now 2)" in checks[-1]


def test_ctrl_c_ends_the_waiting_at_once():
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", PROGRAM, "plain", "60"]
    more = {"MEDJAX_COORDINATOR": coordinator, "MEDJAX_PROCESSES": "2", "MEDJAX_PROCESS_ID": "0"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **more}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert "waits for all" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=20) == 75


def test_two_of_three_processes_say_that_another_is_missing():
    zero, one = processes("plain", (0, 1), timeout_s=4, count=3)
    assert zero[0] == one[0] == 1
    assert "other processes: not all of them have called in. Check:" in zero[1]
    assert "other processes: process 0 listens, so another process is missing. Check:" in one[1]


def test_what_a_connection_to_process_0_tells():
    port = free_port()

    def told(address):
        return distributed._diagnosis(DistributedSettings(coordinator=address, processes=2, process_id=1))

    assert told(f"127.0.0.1:{port}") == (
        f": 127.0.0.1 answers, but nothing listens on port {port}, so process 0 is not running"
    )
    assert told("nowhere.invalid:8476") == ": the name nowhere.invalid is not known here"
    with socket.create_server(("127.0.0.1", port)):
        assert told(f"127.0.0.1:{port}") == ": process 0 listens, so another process is missing"


def test_a_second_process_0_is_told():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ((status, out, _),) = processes("plain", (0,), coordinator=f"127.0.0.1:{port}")
    assert status == 1
    assert f"ValueError distributed.coordinator: got 127.0.0.1:{port}, but port {port} cannot be used here" in out
    assert "is another process 0 running?" in out


# ---- without a second process


def nothing_is_started(monkeypatch):
    def initialize(**arguments):
        raise AssertionError(f"asked the network: {arguments}")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        (DistributedSettings(), {}),
        (DistributedSettings(processes=1), {"MEDJAX_COORDINATOR": "host:1"}),
        (None, {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}),
        (None, {"OMPI_COMM_WORLD_SIZE": "1"}),
    ],
)
def test_one_process_asks_nothing_of_the_network(settings, environment, monkeypatch):
    nothing_is_started(monkeypatch)
    assert start(settings, environment) is False
    assert distributed.is_main()
    assert distributed.preempted(3) is False
    assert distributed.leave(2) == 2
    distributed.barrier("alone")


def test_slurm_without_srun_runs_alone_and_says_so(monkeypatch, capsys):
    nothing_is_started(monkeypatch)
    assert start(None, {"SLURM_NTASKS": "16", "JAX_PLATFORMS": "cpu"}) is False
    assert capsys.readouterr().err == (
        "SLURM has 16 tasks here, but this process was not started by srun: it runs alone\n"
    )


@pytest.mark.parametrize(
    ("more", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "8", "JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    ],
)
def test_slurm_gives_a_task_that_has_a_node_all_of_its_gpus(more, devices, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: asked.append(arguments))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert start(None, {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", **more}) is False  # JAX has one process
    assert asked == [{"initialization_timeout": 2400, "local_device_ids": devices}]
    assert capsys.readouterr().err.endswith("(started by SLURM) waits for all, up to 1800 s\n")


def test_a_cluster_that_jax_cannot_read_is_told(monkeypatch):
    def initialize(**arguments):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        ValueError, match=r"Open MPI: JAX cannot tell the processes .*set MEDJAX_COORDINATOR, MEDJAX_PR"
    ):
        start(None, {"OMPI_COMM_WORLD_SIZE": "4"})


def test_a_tpu_machine_is_known_by_its_chips_and_libtpu(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert distributed._cluster({}, tmp_path) == ""
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "dev" / "vfio" / "0").touch()
    assert distributed._cluster({}, tmp_path) == "TPU"
    assert distributed._cluster({"JAX_PLATFORMS": "cpu"}, tmp_path) == ""
    assert distributed._cluster({"TPU_SKIP_MDS_QUERY": "1"}, tmp_path) == ""
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    assert distributed._cluster({}, tmp_path) == ""


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        (
            DistributedSettings(coordinator="a:1"),
            {"MEDJAX_PROCESSES": "2"},
            "got coordinator=a:1 but no process_id, expected all three; set MEDJAX_PROCESS_ID in each process.",
        ),
        (
            DistributedSettings(),
            {"MEDJAX_PROCESS_ID": "1"},
            "got process_id=1 but no coordinator and no processes, expected all three; set MEDJAX_COORDINATOR, "
            "MEDJAX_PROCESSES in each process.",
        ),
        (DistributedSettings(), {"MEDJAX_PROCESSES": "two"}, "MEDJAX_PROCESSES: got 'two', expected a whole number"),
        (
            DistributedSettings(coordinator="a:1", processes=2),
            {"MEDJAX_PROCESS_ID": "2"},
            "process_id: got 2, expected 0 to 1: ids count from 0.",
        ),
    ],
)
def test_settings_that_do_not_fit_together(settings, environment, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        start(settings, environment)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinator": "host"}, "coordinator: got 'host', expected HOST:PORT"),
        ({"coordinator": "host:99999"}, "coordinator: got 'host:99999', expected HOST:PORT"),
        ({"processes": 0}, "processes: got 0, expected 1 or more"),
        ({"timeout_s": 0}, "timeout_s: got 0, expected 1 or more"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistributedSettings(**values)


def test_the_banner_of_one_process():
    assert distributed.banner(make_mesh("tensor=2,data=4")) == (
        f"process 0 of 1 on {os.uname().nodename}: 8 local of 8 devices (cpu), mesh data=4,tensor=2"
    )
