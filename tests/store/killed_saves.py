"""Run in its own process: save until killed with SIGKILL, again and again in the same folder, as a user would.

Each round is a forked process that opens the folder, restores the newest checkpoint, compares it with what was saved at
that step, and goes on saving. Prints one JSON line a round: the step restored, whether every bit was right, the steps
listed, and which partial folders the kill left behind.

  python killed_saves.py FOLDER MOMENT…

A MOMENT is a number of milliseconds after the first save of the round began; "rename": just before a checkpoint gets
its name; "delete": when one file of an old checkpoint is gone; "end": not killed, the round only looks.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import orbax.checkpoint  # noqa: F401  imported before the forks, so that each round starts quickly
from checkpoint_trees import abstract, host_tree, placed, same_bits

from medjax.parallel.mesh import make_mesh
from medjax.store.checkpoints import Checkpoints


def big_tree(step: int) -> dict:
    return host_tree(step) | {"zeros": np.full((64, 32), step, np.float32)}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(folder: Path, moment: str, report: int, started: int) -> None:
    """One round; ends only by being killed, unless moment is "end"."""
    mesh = make_mesh("fsdp=2")
    left = sorted(entry.name for entry in folder.iterdir() if not entry.name.isdecimal()) if folder.is_dir() else []
    checkpoints = Checkpoints(folder, keep_last=2, keep_best=1, identity={"base": "b"})
    latest, right = checkpoints.latest(), None
    cleaned = not folder.is_dir() or all(entry.name.isdecimal() for entry in folder.iterdir())
    for step in checkpoints.steps():
        right = right is not False and same_bits(checkpoints.restore(step, abstract(mesh)), big_tree(step))
    line = {"moment": moment, "left": left, "cleaned": cleaned, "latest": latest, "right": right}
    os.write(report, (json.dumps(line | {"steps": checkpoints.steps()}) + "\n").encode())
    if moment == "end":
        os._exit(0)
    step = 0 if latest is None else latest + 1
    if moment == "rename":
        rename, seen = os.rename, []

        def last_moment(source, target, **options):
            seen.append(target)
            if len(seen) == 3:
                die()
            rename(source, target, **options)

        os.rename = last_moment
    if moment == "delete":

        def half(path, **_):
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            die()

        shutil.rmtree = half
    os.write(started, b"x")
    while True:
        checkpoints.save(step, placed(big_tree(step), mesh), {"step": step}, metric=float(step % 5))
        step += 1


def main(folder: str, *moments: str) -> None:
    for moment in moments:
        reading, started = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(Path(folder), moment, 1, started)
            except BaseException as error:
                os.write(2, f"{moment}: {error!r}\n".encode())
            os._exit(1)
        os.close(started)
        if moment not in ("rename", "delete", "end") and os.read(reading, 1):
            time.sleep(float(moment) / 1000)
            os.kill(child, signal.SIGKILL)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        if moment != "end" and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"{moment}: the round ended by itself with status {status}")


main(*sys.argv[1:])
