"""Run in its own process: the host memory that exporting takes above the model in place.

Prints one JSON object. RssAnon of /proc/self/status is sampled every millisecond by a thread.

  python exporting_memory.py WARM_UP_FOLDER FOLDER OUT [hoard]

`hoard` keeps every tensor that was made, which is the fault that the measurement must be able to see.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import jax

from medjax.parallel.mesh import make_mesh
from medjax.store import exporting
from medjax.store.loading import load_decoder


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def main(warm_up: str, folder: str, out: str, mode: str) -> None:
    mesh = make_mesh("", jax.devices()[:1])
    small = load_decoder(warm_up, mesh=mesh)
    exporting.save_hugging_face(f"{out}-small", small.config, small.params, dtype="float32")
    model = load_decoder(folder, mesh=mesh)
    kept = []
    if mode == "hoard":
        make = exporting._file_tensor
        exporting._file_tensor = lambda *inputs: kept.append(make(*inputs)) or kept[-1]
    gc.collect()
    before = peak = anonymous_bytes()
    stop = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    exporting.save_hugging_face(out, model.config, model.params, dtype="float32")
    stop.set()
    thread.join()
    print(json.dumps({"before": before, "peak": peak, "kept": len(kept)}))


main(*sys.argv[1:4], (sys.argv[4:] or [""])[0])
