"""A tiny ECG data set to train on, of 2-second records whose beat height tells a label, and settings for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medjax.config import load
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.leads import LEADS, derive
from medjax.data.ecg.record import EcgRecord
from medjax.train.ecg_settings import EcgTrainSettings

RATE = 100.0
OPTIONS = {
    "--signal.sampling_rate_hz": 50.0,
    "--signal.samples": 100,
    "--signal.leads": ("I", "II", "V1", "V5"),
    "--signal.normalisation": "none",
    "--encoder.size": "nano",
    "--encoder.patch": 25,
    "--mae.decoder_embed": 32,
    "--mae.decoder_layers": 1,
    "--mae.decoder_heads": 2,
    "--train.batch_size": 8,
    "--train.steps": 4,
    "--optimizer.learning_rate": 1e-3,
    "--log.sinks": (),
    "--compilation_cache": False,
}


def made_record(number: int, *, seconds: float = 2.0, patient: str | None = None) -> EcgRecord:
    """Spikes of 1 mV, or of 3 mV where the label is 1; record number's parity is the label.

    Each lead has waves of its own after the spikes, or ingest would take the records for copies of each other.
    """
    rng = np.random.default_rng(number)
    n = int(seconds * RATE)
    phase = (np.arange(n) / RATE + rng.uniform(0, 0.8)) % 0.8
    high = number % 2
    signal = (1 + 2 * high) * np.exp(-0.5 * ((phase - 0.2) / 0.02) ** 2) * rng.uniform(0.5, 1.0, (12, 1))
    for middle in (0.4, 0.6):
        signal += np.exp(-0.5 * ((phase - middle) / 0.04) ** 2) * rng.uniform(-1.0, 1.0, (12, 1))
    signal += rng.normal(0, 0.02, (12, n))
    signal[2:6] = np.nan
    signal = derive(signal.astype(np.float32))
    status = tuple("derived" if lead in LEADS[2:6] else "measured" for lead in LEADS)
    return EcgRecord(
        id=f"r{number:03d}",
        signal=signal,
        sampling_rate_hz=RATE,
        status=status,
        age_years=40.0 + 2 * number % 37,
        sex="male" if number % 3 else "female",
        patient=patient or f"p{number:03d}",
        source=f"r{number:03d}.hea",
        format="made",
        labels={"high": float(high), "grade": float(number % 3), **({"rare": 1.0} if number < 6 else {})},
    )


def write_records(folder: Path, count: int = 40, **changes: Any) -> EcgDataset:
    """A data set of `count` records; changes: of record 0, as of a leak."""
    records = [made_record(number) for number in range(count)]
    records[0] = replace(records[0], **changes)
    return write_dataset(folder, records)


def settings_of(data: Path, **options: Any) -> EcgTrainSettings:
    """Settings with the tiny defaults; options by key with __ for the dot: train__steps=2."""
    given = {f"--{name.replace('__', '.')}": value for name, value in options.items()}
    return load(EcgTrainSettings, overrides=OPTIONS | {"--data": (str(data),)} | given)
