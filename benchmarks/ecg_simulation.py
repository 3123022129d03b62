"""The whole path from files to a validated detector, on a simulation whose best achievable AUROC is known.

  python benchmarks/ecg_simulation.py --out runs/simulation --json result.json

There is no open recording with an ejection fraction, so patients are SIMULATED (medjax.data.ecg.simulation says how):
their ejection fraction changes the waveform in a known way, hidden by variation between patients, so the AUROC of the
best possible detector follows from theory. The script writes WFDB files, as a hospital would export them, and gives the
same commands as a user: medjax.ingest, medjax.train twice (masked autoencoder, detector), medjax.eval. The detector
holds what it promises when the interval of its AUROC on test patients reaches the best. A few hundred test patients may
be easier or harder than all, so the best possible score of the very same patients (from the features that made their
waveforms, which no detector sees) stands beside it, with the paired difference. Nothing here says how well a detector
does on people.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name

from medjax.data.ecg.simulation import LOW_EF, Simulation, best_auroc, draw_patient, optimal_score, write
from medjax.statistics.delong import PairedTest, compare

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "ecg"


def main() -> None:
    options = _options()
    out = Path(options.out)
    files, records, start, run, graded = (out / name for name in ("files", "records", "mae", "detector", "evaluation"))
    seconds: dict[str, float] = {}

    def timed(name: str, *arguments: str) -> None:
        began = time.monotonic()
        print(f"\n$ python -m medjax.{' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", f"medjax.{arguments[0]}", *arguments[1:]], check=True)
        seconds[name] = round(time.monotonic() - began, 1)

    simulation = Simulation()
    if not (records / "index.parquet").is_file():
        print(f"simulating {options.patients:,} patients", flush=True)
        write(files, options.patients, options.seed, simulation)
        labels = str(files / "labels.csv")
        timed("ingest", "ingest", "ecg", "--source", str(files), "--labels", labels, "--out", str(records))
    data = ("--data", str(records))
    timed("pre-train", "train", str(CONFIGS / "mae_simulation_cpu.toml"), *data, "--out", str(start))
    detector = str(CONFIGS / "lvsd_simulation_cpu.toml")
    timed("train", "train", detector, *data, "--start", str(start), "--out", str(run))
    timed("eval", "eval", "--model", str(run), *data, "--out", str(graded))

    results = json.loads((graded / "results.json").read_text("utf-8"))
    target = next(found for found in results["targets"] if found["name"] == LOW_EF)
    auroc: dict[str, Any] = target["discrimination"]["auroc"]
    best = best_auroc(simulation)
    reached = auroc["low"] <= best <= auroc["high"]
    paired = against_best(graded / "samples.jsonl", options.seed, simulation)
    print("\nSIMULATION, not people")
    print(f"best achievable AUROC  {best:.4f}")
    print(f"detector               {auroc['value']:.4f} ({auroc['low']:.4f} to {auroc['high']:.4f}), {auroc['method']}")
    possible, gap = paired.first, paired.difference
    print(f"best of these patients {possible.value:.4f} ({possible.low:.4f} to {possible.high:.4f})")
    print(f"detector minus it      {gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}), {gap.method}")
    print(f"test patients          {target['counts']['patients']:,}, {target['counts']['positive']:,} with a low EF")
    print("the interval reaches the best" if reached else "the interval does NOT reach the best")
    if options.json:
        result = {
            "simulation": True,
            "patients": options.patients,
            "seed": options.seed,
            "best_auroc": best,
            "auroc": auroc,
            "best_of_these_patients": possible.to_json(),
            "difference": gap.to_json(),
            "reached": reached,
            "test": target["counts"],
            "calibration": target["calibration"]["calibrated"],
            "operating_point": target["operating_points"][0],
            "seconds": seconds,
            "device": cpu_name(),
            "versions": {"numpy": np.__version__} | results["protocol"]["versions"],
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def against_best(samples: Path, seed: int, simulation: Simulation) -> PairedTest:
    """The detector (second) against the best score of the same patients (first)."""
    judged = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    judged = [sample for sample in judged if sample["refused"] is None]
    numbers = [int(sample["id"].removeprefix("sim")) for sample in judged]
    features = np.array([draw_patient(number, seed, simulation).features for number in numbers])
    labels = [sample["labels"][LOW_EF] for sample in judged]
    logits = [sample["outputs"][LOW_EF]["raw"][0] for sample in judged]
    return compare(labels, optimal_score(features, simulation), logits)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=12_000, help="to simulate; default 12,000")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--out", default="runs/ecg_simulation", help="folder for files, records and runs")
    parser.add_argument("--json", help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
