"""medjax.ingest against plain wfdb-python on the same WFDB records: records a second and core.

  python benchmarks/ingest_vs_wfdb.py --json result.json                      made records, 12 x 5000, 16 bits
  python benchmarks/ingest_vs_wfdb.py --source export/ --json result.json     WFDB records of a folder

The peer does what a short script would: `wfdb.rdrecord` for the millivolts, nothing else. medjax is timed three times:

  read    read_ecg: the same, and standard leads, laws, flat leads, hum, age, sex
  ready   read, and steps, scale, digest and fingerprint: all that a reader process does
  whole   `python -m medjax.ingest ecg` from the first file to the report, with the start of its processes

read, ready and the peer run in this process, on one core, in turns (peer first and last), so that a machine that slows
down meanwhile shows. Rates are records a CPU second, which other work on the same cores disturbs least (the whole's
include its child processes); wall seconds are given too. `ratio` compares ready with the peer: the work of a core while
an ingest reads. Files are read once before, so that all find them in memory. Reading is work of the host: --device only
names the machine.

Exit status: 0 done, 1 millivolts differ by more than 1e-6, 2 the call or the input was wrong.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import cores, cpu_name

from medjax.data.ecg.leads import LEADS, standard_name
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.storage import restore
from medjax.ingest.reading import read_source
from medjax.ingest.run import ingest
from medjax.ingest.settings import IngestSettings
from medjax.ingest.sources import Source, find_sources

TOLERANCE_MV = 1e-6
_MADE = (12, 5000, 500)  # leads, samples, Hz


def main() -> int:
    options = _options()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = Path(options.source) if options.source else make_records(Path(scratch) / "made", options.records)
            sources = [source for source in find_sources(folder).files if source.path.suffix == ".hea"]
            if not sources:
                raise ValueError(f"{folder}: got no .hea file, expected WFDB records; name another --source.")
        except (ValueError, OSError) as error:
            print(f"ingest_vs_wfdb: {error}", file=sys.stderr)
            return 2
        result = measure(sources, folder, Path(scratch), options)
    print_table(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0 if result["max_abs_diff"] <= TOLERANCE_MV else 1


def measure(sources: list[Source], folder: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns, and how far their millivolts are apart."""
    sides: dict[str, Callable[[Source], Any]] = {
        "wfdb": peer_read,
        "read": lambda source: read_ecg(source.path),
        "ready": read_source,
    }
    difference, corrected = differences(sources)  # also brings the files into memory
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in (*sides, "whole")}
    load = [os.getloadavg()[0]]
    for name in [*sides] * options.repeats + ["wfdb"]:
        start, start_wall = time.process_time(), time.perf_counter()
        for source in sources:
            sides[name](source)
        seconds[name].append(time.process_time() - start)
        wall[name].append(time.perf_counter() - start_wall)
    processes = options.processes or len(cores())
    start, start_wall = _cpu_seconds(), time.perf_counter()
    ingest(IngestSettings(str(folder), str(scratch / "out"), processes=processes, examples=0))
    seconds["whole"] = [_cpu_seconds() - start]
    wall["whole"].append(time.perf_counter() - start_wall)
    load.append(os.getloadavg()[0])
    rates = {name: len(sources) / statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio": rates["ready"] / rates["wfdb"],
        **{f"ratio_{name}": rates[name] / rates["wfdb"] for name in ("read", "whole")},
        "max_abs_diff": difference,
        "gains_corrected": corrected,
        "records": len(sources),
        "records_per_cpu_s": rates,
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "processes": processes,
        "threads": 1,
        "load_average_1min": load,
        "device": {"name": options.device, "cpu": cpu_name(), "cores": len(cores())},
        "source": options.source or f"made, {_MADE[0]} x {_MADE[1]} at {_MADE[2]} Hz",
        "versions": {name: version(name) for name in ("medjax", "wfdb", "numpy", "tensorflow-datasets")}
        | {"python": platform.python_version()},
    }


def _cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peer_read(source: Source) -> tuple[np.ndarray, list[str]]:
    """Millivolts [samples, leads] and the names of the leads, by wfdb-python alone."""
    import wfdb

    record = wfdb.rdrecord(str(source.path.with_suffix("")))
    return record.p_signal, record.sig_name


def differences(sources: list[Source]) -> tuple[float, int]:
    """The largest difference of stored and plain millivolts, and of how many records medjax corrected the gain."""
    largest, corrected = 0.0, 0
    for source in sources:
        (row,) = read_source(source).rows
        if any("gain" in note for note in json.loads(row["notes"])):
            corrected += 1
            continue
        signal = restore(row["signal"], row["scale"])
        plain, names = peer_read(source)
        for name, column in zip(names, plain.T, strict=True):
            lead = LEADS.index(standard_name(name) or "I")
            known = ~np.isnan(signal[lead])
            largest = max(largest, float(np.abs(signal[lead] - column)[known].max(initial=0)))
    return largest, corrected


def make_records(folder: Path, count: int) -> Path:
    """Write WFDB records of noise that obeys Einthoven and Goldberger, in whole microvolts."""
    import wfdb

    folder.mkdir()
    rng = np.random.default_rng(0)
    _, samples, rate = _MADE
    for number in range(count):
        steps = np.cumsum(rng.integers(-9, 10, (8, samples)), axis=1) * 2
        first, second = steps[:2]
        limb = [first, second, second - first, -(first + second) // 2, first - second // 2, second - first // 2]
        signal = np.stack([*limb, *steps[2:]]).T.astype(np.int16)
        wfdb.wrsamp(
            f"r{number:05d}",
            fs=rate,
            units=["mV"] * len(LEADS),
            sig_name=list(LEADS),
            d_signal=signal,
            fmt=["16"] * len(LEADS),
            adc_gain=[1000.0] * len(LEADS),
            baseline=[0] * len(LEADS),
            comments=["Age: 63", "Sex: Female"],
            write_dir=str(folder),
        )
    return folder


def print_table(result: dict[str, Any]) -> None:
    """The result as lines for people."""
    rates = result["records_per_cpu_s"]
    device = result["device"]
    print(f"\n{result['records']} WFDB records ({result['source']}); {device['cpu']}, {device['cores']} cores")
    for name, what in (
        ("wfdb", "wfdb-python alone"),
        ("read", "medjax, read"),
        ("ready", "medjax, ready to be stored"),
        ("whole", f"medjax.ingest, whole, {result['processes']} processes"),
    ):
        cpu, wall = (" ".join(f"{s:.2f}" for s in result[key][name]) for key in ("cpu_seconds", "wall_seconds"))
        rate, ratio = rates[name], rates[name] / rates["wfdb"]
        print(f"{what:<38} {rate:8.1f} records/CPU s {ratio:6.2f} x   CPU s: {cpu}   wall s: {wall}")
    print(f"load average before and after: {result['load_average_1min']}")
    print(
        f"largest difference of millivolts {result['max_abs_diff']:.1e}, allowed {TOLERANCE_MV:.0e}; gains of "
        f"{result['gains_corrected']} records corrected by medjax and not compared"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", help="folder of WFDB records; none: records are made")
    parser.add_argument("--records", type=int, default=300, help="to make (default 300)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side (default 3)")
    parser.add_argument("--processes", type=int, default=0, help="of the whole ingest; 0: one a core")
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="of the machine; reads on its host"
    )
    parser.add_argument("--json", help="file to write the result to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
