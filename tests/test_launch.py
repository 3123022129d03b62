"""The launch scripts: what each of them starts, and how the two-process one ends."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMAND = 'python -m medjax.train "$@"'
EVAL = 'python -m medjax.eval "$@" --shard "${SHARD:-auto}"'

# stands for medjax.train: says how it was called, then does what its first argument tells
STAND_IN = """
import json, os, signal, sys, time
names = ("MEDJAX_COORDINATOR", "MEDJAX_PROCESSES", "MEDJAX_PROCESS_ID", "JAX_PLATFORMS", "XLA_FLAGS", "SLURM_NTASKS")
os.write(1, (json.dumps({"args": sys.argv[1:], **{name: os.environ.get(name) for name in names}}) + "\\n").encode())
wanted = sys.argv[3].split(",")[int(os.environ.get("MEDJAX_PROCESS_ID") or 0)]
if wanted == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if wanted == "stops":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if wanted in ("sleep", "deaf", "stops"):
    time.sleep(60)
sys.exit(int(wanted) if wanted.isdigit() else 0)
"""


@pytest.fixture
def environment(tmp_path):
    """An environment in which `python -m medjax.train` is the stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    python = tmp_path / "python"
    real, stand_in = sys.executable, tmp_path / "stand_in.py"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exec "{real}" "{stand_in}" "$@"\nexec "{real}" "$@"\n')
    python.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**inherited, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def called(script, *args, env):
    done = subprocess.run(["bash", LAUNCH / script, *args], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def jobset():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text("utf-8"))


def test_every_script_is_short_parses_and_ends_in_the_same_command():
    assert [path.name for path in SCRIPTS] == [
        *("eval_array.sh", "local_2process.sh", "local_8device.sh", "multi_gpu.sh", "slurm.sh", "tpu_vm.sh")
    ]
    for path in [*SCRIPTS, LAUNCH / "gke_jobset.yaml"]:
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) < 60, path.name
        assert lines[-1].strip() == (EVAL if path.name.startswith("eval_") else COMMAND), path.name
        assert [line for line in lines if "-m medjax." in line and not line.startswith(("#", "  echo", "if"))] == [
            lines[-1]
        ], path.name
    for path in SCRIPTS:
        assert os.access(path, os.X_OK), path.name
        assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    assert subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True).stdout == ""


def test_the_jobset_asks_for_as_many_chips_as_its_topology_has():
    (replicated,) = jobset()["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert job["parallelism"] == job["completions"] == 4
    assert int(rows) * int(columns) == 4 * container["resources"]["limits"]["google.com/tpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_jobset_runs_the_command_with_its_arguments(environment):
    (container,) = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    done = subprocess.run([*container["command"], *container["args"]], env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout)["args"][:3] == ["-m", "medjax.train", "configs/sft/llama3_8b_lora.toml"]


@pytest.mark.parametrize("script", ["local_8device.sh", "multi_gpu.sh", "tpu_vm.sh"])
def test_scripts_of_one_process_pass_arguments_and_status(script, environment):
    environment |= {"SLURM_NTASKS": "4", "MEDJAX_PROCESSES": "2", "ON_WORKER": "1"}
    status, (call,), _ = called(script, "7", "a b", "--x='*'", env=environment)
    assert status == 7
    assert call["args"] == ["-m", "medjax.train", "7", "a b", "--x='*'"]
    if script == "local_8device.sh":
        assert call["JAX_PLATFORMS"] == "cpu"
        assert call["XLA_FLAGS"].strip() == "--xla_force_host_platform_device_count=8"
    if script == "multi_gpu.sh":
        assert call["SLURM_NTASKS"] is call["MEDJAX_PROCESSES"] is None


def test_tpu_vm_calls_itself_on_all_workers_with_arguments_quoted(environment, tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment |= {"TPU": "pod", "ZONE": "us-west4-a", "PROJECT": "own"}
    command = ["bash", LAUNCH / "tpu_vm.sh", "x.toml", "--out", "/mnt/a b"]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()
    assert lines[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert lines[5:11] == ["--zone", "us-west4-a", "--project", "own", "--worker=all", "--command"]
    assert lines[11] == (
        "cd ~/medjax && source ~/venv/bin/activate && ON_WORKER=1 launch/tpu_vm.sh x.toml --out /mnt/a\\ b "
    )
    del environment["TPU"]
    missing = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "set TPU to the name of the TPU VM" in missing.stderr


def test_a_task_of_an_array_makes_its_shard(environment):
    for set_to, shard in (({}, "auto"), ({"SHARD": "3/8"}, "3/8")):
        status, (said,), _ = called("eval_array.sh", "--tasks", "0", env={**environment, **set_to})
        assert (status, said["args"]) == (0, ["-m", "medjax.eval", "--tasks", "0", "--shard", shard])


def test_slurm_hands_the_command_to_srun(environment, tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sh", "x.toml", "a b"], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        *("--kill-on-bad-exit=1", "--wait=60", "--label", "python", "-m", "medjax.train", "x.toml", "a b")
    ]


def test_two_processes_get_one_address_and_their_own_ids(environment):
    status, calls, stderr = called("local_2process.sh", "0,0", "a b", env=environment)
    assert (status, stderr) == (0, "")
    assert sorted(call["MEDJAX_PROCESS_ID"] for call in calls) == ["0", "1"]
    (address,) = {call["MEDJAX_COORDINATOR"] for call in calls}
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))):  # the port was left free
        pass
    for call in calls:
        assert call["MEDJAX_PROCESSES"] == "2"
        assert call["args"] == ["-m", "medjax.train", "0,0", "a b"]
        assert call["XLA_FLAGS"].strip() == "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize(
    ("wanted", "expected"), [("3,0", 3), ("0,3", 3), ("75,75", 75), ("0,75", 75), ("sleep,2", 2), ("1,deaf", 1)]
)
def test_two_processes_end_with_the_worst_status(wanted, expected, environment):
    began = time.monotonic()
    status, calls, stderr = called("local_2process.sh", wanted, env=environment)
    assert status == expected
    assert time.monotonic() - began < 20  # one that would sleep for a minute was ended
    if not wanted.replace(",", "").isdigit():
        assert len(calls) == 2
        assert f"ended with status {expected}; ending the other one" in stderr


def test_a_stop_signal_reaches_both_processes(environment):
    command = ["bash", LAUNCH / "local_2process.sh", "stops,stops"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        for _ in range(2):  # both have started
            assert running.stdout is not None
            running.stdout.readline()
        time.sleep(0.3)  # and set their handlers
        running.terminate()
        assert running.wait(timeout=20) == 75


def test_two_processes_train_as_one_does(tmp_path, monkeypatch):
    """The real command: two processes with four devices each against one process with one device."""
    monkeypatch.syspath_prepend(str(LAUNCH.parent / "tests" / "eval"))
    from tiny_checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "model", seed=5)
    notes = [{"text": f"Case {i}: fever for {i % 9} days, then cough. Assessment: pneumonia."} for i in range(60)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    options = [
        *("--model", tmp_path / "model", "--data", tmp_path / "notes.jsonl", "--data.exams", "none"),
        *("--data.held_out_count", "8", "--window", "128", "--batch-size", "8", "--steps", "3", "--log.every", "1"),
        *("--log.sinks", "[]", "--out"),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        **{"PYTHONPATH": str(LAUNCH.parent), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        **{"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
    }
    commands = {
        "one": [sys.executable, "-m", "medjax.train", *options, tmp_path / "one"],
        "two": ["bash", LAUNCH / "local_2process.sh", *options, tmp_path / "two", "--mesh", "data=2,fsdp=4"],
    }
    losses, printed = {}, {}
    for name, command in commands.items():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines()
        losses[name], printed[name] = [json.loads(line)["loss"] for line in lines], done.stdout
    assert len(losses["one"]) == 3
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    for number in (0, 1):
        assert (
            f"process {number} of 2 on {os.uname().nodename}: 4 local of 8 devices (cpu), mesh data=2,fsdp=4"
            in (printed["two"])
        )
