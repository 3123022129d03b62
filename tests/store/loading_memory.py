"""Run in its own process: the host memory that loading a checkpoint takes above the finished model.

Prints one JSON object. RssAnon of /proc/self/status (file pages that are merely mapped do not count) is sampled every
millisecond by a thread, and after every parameter.

  python loading_memory.py WARM_UP_FOLDER FOLDER MESH [hoard]

`hoard` keeps every tensor that was read, which is the fault that the measurement must be able to see.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import jax

from medjax.parallel.mesh import make_mesh
from medjax.store import sources
from medjax.store.loading import load_decoder


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def main(warm_up: str, folder: str, mesh_text: str, mode: str) -> None:
    mesh = make_mesh(mesh_text, None if mesh_text else jax.devices()[:1])
    load_decoder(warm_up, mesh=mesh)  # imports, threads and buffers of the runtime
    gc.collect()
    kept = []
    if mode == "hoard":
        read = sources.HuggingFaceSource.read

        def hoarding(self, name):
            kept.append(read(self, name))
            return kept[-1]

        sources.HuggingFaceSource.read = hoarding
    before = peak = anonymous_bytes()
    stop = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.001)

    def after_parameter(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    model = load_decoder(folder, mesh=mesh, progress=after_parameter)
    stop.set()
    thread.join()
    kept.clear()
    gc.collect()
    after = anonymous_bytes()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
    found = {"before": before, "peak": peak, "after": after, "whole": sum(sizes), "largest": max(sizes)}
    print(json.dumps(found))


main(*sys.argv[1:4], (sys.argv[4:] or [""])[0])
