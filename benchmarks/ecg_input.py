"""Input of ECG training: records read from ArrayRecord, filtered, resampled and batched, a second.

  python benchmarks/ecg_input.py --json result.json
  python benchmarks/ecg_input.py --step-records-per-s 9.8     against what a training step consumes (target 20 x)

The same simulated recordings, 12 leads x 10 s at 500 Hz, come out as 12 x 2500 at 250 Hz with a 0.5 Hz high-pass:

  medjax      ArrayRecord written by medjax.data.ecg, EcgBatches.iterate with --workers threads
  wfdb_scipy  as is usual: wfdb.rdrecord on the WFDB files, scipy's sosfiltfilt and resample_poly, record by record in
              --workers processes, which hand the arrays back

Blocks of both take turns; rates are medians over them. `max_abs_diff` is that of the middle four seconds: towards the
ends the two continue a record differently (sosfiltfilt by a point reflection of a few samples), and a 0.5 Hz high-pass
remembers that for seconds. CPU seconds are those of one thread doing the same work, because other work on the same
cores distorts wall seconds more.

Exit status: 0 done, 1 the two differ by more than the tolerance, 2 the call was wrong.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import JAX_PLATFORMS, cores, cpu_name, hold_to_cores

from medjax.data.ecg.batches import EcgBatches
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.signal import Preprocessing, prepare
from medjax.data.ecg.simulation import Simulation, records, write

TARGET = 20  # times what a step consumes
TOLERANCE_MV = 5e-3
SEED = 0
PREPROCESSING = Preprocessing(notch="none")


def main() -> int:
    options = _options()
    try:
        hold_to_cores(options.threads, options.device)
    except ValueError as error:
        print(f"ecg_input: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="medjax-ecg-") as name:
        result = measure(options, Path(name))
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    return 0 if result["max_abs_diff"] <= result["tolerance"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=tuple(JAX_PLATFORMS), default="cpu", help="input is made on the host in any"
    )
    parser.add_argument("--records", type=int, default=512, help="simulated recordings (512)")
    parser.add_argument("--batch-size", type=int, default=64, help="records of a batch (64)")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each side, an epoch each (3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores that both sides get (2)")
    parser.add_argument("--workers", type=int, help="medjax: threads; wfdb_scipy: processes (as many as cores)")
    parser.add_argument("--step-records-per-s", type=float, help="records/s of a training step, to compare with")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    options.workers = options.workers or options.threads
    for name in ("records", "batch_size", "rounds", "threads", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected 1 or more")
    if options.records < options.batch_size:
        parser.error(f"--records: got {options.records}, expected at least a batch of {options.batch_size}")
    if options.step_records_per_s is not None and options.step_records_per_s <= 0:
        parser.error(f"--step-records-per-s: got {options.step_records_per_s}, expected more than 0")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the recordings in both forms, run both sides in turn; returns the benchmark's numbers."""
    load = [os.getloadavg()[0]]
    print(f"simulating {options.records} recordings", flush=True)
    write(folder / "wfdb", options.records, SEED, Simulation())
    dataset = write_dataset(folder / "arrays", records(options.records, SEED, Simulation()))
    names = [str(folder / "wfdb" / str(name)) for name in dataset.index["id"]]
    batches = EcgBatches(dataset, range(len(dataset)), PREPROCESSING, rows=options.batch_size, seed=SEED)
    steps = len(dataset) // options.batch_size
    seen = steps * options.batch_size
    some = names[: min(len(names), 128)]

    blocks: dict[str, list[dict[str, float]]] = {"medjax": [], "wfdb_scipy": []}
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        pool.map(usual, some, chunksize=8)  # imports
        list(batches.iterate(0, 1, threads=options.workers))
        for number in range(options.rounds):
            line = range(number * steps, (number + 1) * steps)

            def ours(line: range = line) -> None:
                for _ in batches.iterate(line.start, line.stop, threads=options.workers):
                    pass

            blocks["medjax"].append(_timed(ours, seen))
            blocks["wfdb_scipy"].append(_timed(lambda: list(pool.imap(usual, names, chunksize=8)), len(names)))
            load.append(os.getloadavg()[0])
    alone = {
        "medjax": _timed(lambda: [batches.batch_at(step) for step in range(steps)], seen),
        "wfdb_scipy": _timed(lambda: [usual(name) for name in some], len(some)),
    }
    parts = _parts(dataset, len(some))
    rates = {side: statistics.median(block["records_per_s"] for block in blocks[side]) for side in blocks}
    ratio = rates["medjax"] / rates["wfdb_scipy"]
    by_cpu = {side: block["records_per_cpu_s"] for side, block in alone.items()}
    fed = rates["medjax"] / options.step_records_per_s if options.step_records_per_s else None
    return {
        "ratio": ratio,
        "ratio_wfdb_scipy": ratio,
        "ratio_cpu_seconds": by_cpu["medjax"] / by_cpu["wfdb_scipy"],
        "records_per_s": rates,
        "records_per_cpu_s": by_cpu,
        "parts_records_per_cpu_s": parts,
        "times_a_step": fed,
        "target_times_a_step": TARGET,
        "max_abs_diff": _difference(dataset, names, len(some)),
        "tolerance": TOLERANCE_MV,
        "blocks": blocks,
        "one_thread": alone,
        "versions": {
            name: version(name) for name in ("numpy", "scipy", "wfdb", "grain", "tensorflow-datasets", "array-record")
        }
        | {"python": platform.python_version()},
        "device": {"cpu": cpu_name(), "cores": len(cores()), "load_average_1min": [round(one, 2) for one in load]},
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
    }


def usual(name: str) -> np.ndarray:
    """A WFDB record in mV, high-passed and at 250 Hz, [12, 2500] float32, by wfdb and scipy."""
    import wfdb
    from scipy.signal import butter, resample_poly, sosfiltfilt

    record = wfdb.rdrecord(name)
    sections = butter(2, 0.5, "highpass", fs=record.fs, output="sos")
    filtered = sosfiltfilt(sections, record.p_signal.T, axis=-1)
    return resample_poly(filtered, 250, int(record.fs), axis=-1).astype(np.float32)


def _timed(work: Callable[[], Any], count: int) -> dict[str, float]:
    """Wall and CPU seconds of this process for so many records."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "records": count,
        "seconds": wall,
        "cpu_seconds": cpu,
        "records_per_s": count / wall,
        "records_per_cpu_s": count / cpu,
    }


def _parts(dataset: EcgDataset, count: int) -> dict[str, float]:
    """Reading and preparing by themselves, in one thread."""
    read: list[Any] = []
    reading = _timed(lambda: read.extend(dataset.read(range(count))), count)
    preparing = _timed(lambda: [prepare(record, PREPROCESSING) for record in read], count)
    return {"read": reading["records_per_cpu_s"], "prepare": preparing["records_per_cpu_s"]}


def _difference(dataset: EcgDataset, names: list[str], count: int) -> float:
    """The largest difference between the two sides, mV, away from the ends."""
    inside = slice(750, -750)
    return max(
        float(np.abs(prepare(dataset[i], PREPROCESSING)[0] - usual(names[i]))[:, inside].max()) for i in range(count)
    )


def print_table(result: dict[str, Any]) -> None:
    """The result as lines for people."""
    device, settings, parts = result["device"], result["settings"], result["parts_records_per_cpu_s"]
    print(
        f"\n{settings['records']} recordings 12 x 5000 at 500 Hz -> 12 x 2500 at 250 Hz, high-pass 0.5 Hz; "
        f"{device['cpu']}, {device['cores']} cores, {settings['workers']} workers; load average "
        f"{device['load_average_1min']}"
    )
    print(f"{'':<24}{'medjax':>12}{'wfdb_scipy':>12}")
    for label, key in (("records/s", "records_per_s"), ("records/CPU second", "records_per_cpu_s")):
        print(f"{label:<24}{result[key]['medjax']:>12.0f}{result[key]['wfdb_scipy']:>12.0f}")
    print(f"medjax by parts, records/CPU second: reading {parts['read']:.0f}, preparing {parts['prepare']:.0f}")
    print(f"largest difference {result['max_abs_diff']:.1e} mV, allowed {result['tolerance']:.0e}")
    print(
        f"medjax / wfdb_scipy: {result['ratio']:.2f} x records/s (by CPU seconds of one thread "
        f"{result['ratio_cpu_seconds']:.2f})"
    )
    if result["times_a_step"] is not None:
        print(
            f"{result['times_a_step']:.0f} x the {settings['step_records_per_s']:g} records/s of the training step, "
            f"target {TARGET} x"
        )


if __name__ == "__main__":
    sys.exit(main())
