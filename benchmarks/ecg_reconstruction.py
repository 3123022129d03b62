"""Does masked pre-training learn ECGs? Held-out masked error of a masked autoencoder, beside what needs no learning.

  python benchmarks/ecg_reconstruction.py --run runs/train/ecg_mae_tiny --data RECORDS --json result.json

On the records of the run's test patients, which it has never seen, under the same masks:

  model        the autoencoder's reconstruction of the masked patches
  mean         the mean patch of each lead over the training records
  linear       a straight line between the samples on either side of what is masked in the lead; a lead without a
               visible patch is 0, the mean
  other leads  least squares, fitted on the training records, from the leads that are visible at the same time, where
               there are any (what can be known without looking to other times), else the mean patch

The error is the mean squared error of masked patches in the model's own units (a record has variance 1 with
normalisation "record"). Intervals resample patients; ratios of the model to each of the others are paired.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import cpu_name

from medjax.data.ecg.batches import EcgHeldOut
from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule
from medjax.data.ecg.signal import Preprocessing, normalise
from medjax.data.ecg.splits import drop_leaks, patient_keys
from medjax.models.ecg_mae import EcgMae, MaeConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS
from medjax.statistics.bootstrap import PatientBootstrap, weighted_ratio
from medjax.store.encoders import load_encoder

_ROWS = 32
_RIDGE = 1e-3  # of the variance of a lead, so that leads that are sums of others do no harm


def main() -> None:
    options = _options()
    mesh = make_mesh("", jax.local_devices()[:1])
    encoder = load_encoder(Path(options.run).resolve(), mesh, PRESETS["default"])
    config = MaeConfig.from_dict(encoder.config)
    p = Preprocessing.from_json(encoder.facts["preprocessing"])
    dataset = open_datasets(options.data)
    sets, _ = drop_leaks(dataset.index, SplitRule.from_json(encoder.facts["split"]).divide(dataset.index))
    if encoder.facts["training"]["digest"] != dataset.digest:
        raise SystemExit("ecg_reconstruction: --data holds other records than the run was trained on; name the same.")
    model = EcgMae(config)
    made = jax.jit(lambda params, *rows: model.apply({"params": params}, *rows))

    means, covariances = _training_statistics(dataset, sets["train"], p, config.vit.patch[0])
    held_out = EcgHeldOut(dataset, sets["test"], p, rows=_ROWS)
    sums = {name: np.zeros(held_out.filled) for name in ("model", "mean", "linear", "other leads")}
    counts = np.zeros(held_out.filled)
    for number in range(len(held_out)):
        batch = held_out.batch_at(number)
        signal = np.asarray(normalise(batch.signal, batch.valid, p))
        found: Any = made(encoder.params, jnp.asarray(signal), jnp.asarray(batch.valid), jnp.asarray(batch.seeds))
        masked, shown = np.asarray(found.mask.masked), np.asarray(found.mask.shown)
        if config.normalised_targets:
            raise SystemExit("ecg_reconstruction: the run predicts normalised patches; their errors have other units.")
        shape = (len(signal), len(p.leads), -1, config.vit.patch[0])
        truth = signal.reshape(shape)
        guesses = {
            "model": np.asarray(found.predicted, np.float64).reshape(truth.shape),
            "mean": np.broadcast_to(means[:, None], truth.shape),
            "linear": linear(signal, shown.reshape(truth.shape[:3])),
            "other leads": other_leads(truth, shown.reshape(truth.shape[:3]), means, covariances),
        }
        masked = masked.reshape(truth.shape[:3])
        rows = slice(number * _ROWS, min((number + 1) * _ROWS, held_out.filled))
        for name, guess in guesses.items():
            errors = ((guess - truth) ** 2).mean(-1) * masked
            sums[name][rows] = errors.sum((1, 2))[: rows.stop - rows.start]
        counts[rows] = masked.sum((1, 2))[: rows.stop - rows.start]
    report(options, encoder, dataset, held_out, sums, counts)


def _training_statistics(
    dataset: EcgDataset, places: np.ndarray, p: Preprocessing, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mean patch of each lead [leads, patch], and the covariance of leads at the same time [leads, leads]."""
    leads = len(p.leads)
    total, count = np.zeros((leads, patch)), np.zeros((leads, 1))
    products, pairs = np.zeros((leads, leads)), np.zeros((leads, leads))
    held = EcgHeldOut(dataset, places, p, rows=_ROWS)
    for number in range(len(held)):
        batch = held.batch_at(number)
        signal = np.asarray(normalise(batch.signal, batch.valid, p), np.float64)
        known = batch.valid.reshape(len(signal), leads, -1, patch).all(-1)
        total += (signal.reshape(len(signal), leads, -1, patch) * known[..., None]).sum((0, 2))
        count += known.sum((0, 2))[:, None]
        rows = batch.valid.astype(np.float64)
        products += np.einsum("bcn,bdn->cd", signal * rows, signal * rows)
        pairs += np.einsum("bcn,bdn->cd", rows, rows)
    return total / np.maximum(count, 1), products / np.maximum(pairs, 1)


def linear(signal: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Straight lines across what is not shown.

    signal [b, leads, n], shown [b, leads, patches] -> [b, leads, patches, p]
    Beyond the first and the last shown sample its value is kept; a lead of which nothing is shown is 0, the mean.
    """
    b, leads, n = signal.shape
    seen = np.repeat(shown, n // shown.shape[-1], axis=-1)
    guess, places = np.zeros_like(signal), np.arange(n)
    for row in range(b):
        for lead in range(leads):
            there = seen[row, lead]
            if there.any():
                guess[row, lead] = np.interp(places, places[there], signal[row, lead, there])
    return guess.reshape(b, leads, shown.shape[-1], -1)


def other_leads(truth: np.ndarray, shown: np.ndarray, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Ridge regression of each lead on those shown at the same time: truth [b, leads, patches, p] -> the same shape."""
    guess = np.broadcast_to(means[:, None], truth.shape).copy()
    patterns, which = np.unique(shown.transpose(0, 2, 1).reshape(-1, shown.shape[1]), axis=0, return_inverse=True)
    which = which.reshape(shown.shape[0], shown.shape[2])
    for number, pattern in enumerate(patterns):
        if not pattern.any():
            continue
        at = np.nonzero(which == number)
        inner = covariance[np.ix_(pattern, pattern)] + _RIDGE * np.eye(pattern.sum())
        weights = np.linalg.solve(inner, covariance[pattern])  # [shown, leads]
        guess[at[0], :, at[1]] = np.einsum("sl,ksp->klp", weights, truth[at[0], :, at[1]][:, pattern])
    return guess


def report(
    options: argparse.Namespace,
    encoder: Any,
    dataset: EcgDataset,
    held_out: EcgHeldOut,
    sums: dict[str, np.ndarray],
    counts: np.ndarray,
) -> None:
    """Print the table and write the JSON."""
    patients = patient_keys(dataset.index)[held_out.places]
    bootstrap = PatientBootstrap(patients, seed=0)
    errors = bootstrap.estimates({name: weighted_ratio(values, counts) for name, values in sums.items()})
    others = [name for name in sums if name != "model"]
    ratios = bootstrap.estimates({name: weighted_ratio(sums["model"], sums[name]) for name in others})
    print(f"{len(set(patients))} test patients, {int(counts.sum()):,} masked patches\n")
    print("| | masked error | model / it |\n|---|---|---|")
    for name, error in errors.items():
        ratio = ratios.get(name)
        told = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        print(f"| {name} | {error.value:.4f} ({error.low:.4f} to {error.high:.4f}) | {told} |")
    if options.json:
        result = {
            "run": str(options.run),
            "model_digest": encoder.digest(),
            "data_digest": dataset.digest,
            "test_patients": len(set(patients)),
            "masked_patches": int(counts.sum()),
            "errors": {name: error.to_json() for name, error in errors.items()},
            "ratios": {name: ratio.to_json() for name, ratio in ratios.items()},
            "device": cpu_name(),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder of a masked autoencoder")
    parser.add_argument("--data", required=True, nargs="+", help="the data folders that it was trained on")
    parser.add_argument("--json", help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
