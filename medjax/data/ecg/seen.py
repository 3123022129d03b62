"""Whom a training has seen: hashes of patients and recordings beside its run, by which later commands find leaks.

  RUN/seen.json   {"patients": […], "recordings": […]}   the first 16 hex digits of the sha256 of each name

It lies outside RUN/model, as a model may be given away and patients' numbers can be guessed from their hashes. A
recording stands there under the digest of its own samples and under the one that it shares with altered copies
(index: `waveform`, `recording`), so that an exact copy of any of them is found in another data set. Altered copies of a
recording are known only within the data set that they were ingested into together.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medjax.data.ecg.index import Index
from medjax.data.ecg.splits import patient_keys

FILE = "seen.json"
_DIGITS = 16
_RECORDING = ("recording", "waveform")  # columns of the index


@dataclass(frozen=True)
class Seen:
    """Hashes of patients and of recordings."""

    patients: frozenset[str] = frozenset()
    recordings: frozenset[str] = frozenset()

    @classmethod
    def of(cls, index: Index, places: np.ndarray) -> "Seen":
        """Those of the records at these places of a data set."""
        recordings = (name for column in _RECORDING for name in index[column][places])
        return cls(hashes(patient_keys(index)[places]), hashes(recordings))

    @classmethod
    def read(cls, run: Path) -> "Seen | None":
        """What a run has written; None where there is no such file. Raises ValueError for a damaged one."""
        file = run / FILE
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text("utf-8"))
            return cls(frozenset(values["patients"]), frozenset(values["recordings"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: {type(error).__name__}: {error}; expected the lists patients and recordings, as training "
                "writes them; copy the file again."
            ) from None

    def write(self, run: Path) -> None:
        """Write RUN/seen.json, whole or not at all."""
        partial = run / f"{FILE}.partial"
        values = {"patients": sorted(self.patients), "recordings": sorted(self.recordings)}
        partial.write_text(json.dumps(values) + "\n", "utf-8")
        os.replace(partial, run / FILE)

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(self.patients | other.patients, self.recordings | other.recordings)

    def find(self, index: Index, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the records at these places are of a patient, and which a recording, that was seen: bool [places]"""
        by_patient = _among(patient_keys(index)[places], self.patients)
        by_recording = np.zeros(len(places), bool)
        for column in _RECORDING:
            by_recording |= _among(index[column][places], self.recordings)
        return by_patient, by_recording


def hash_of(name: str) -> str:
    """What stands for the name of a patient or recording."""
    return hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]


def hashes(names: Iterable[str]) -> frozenset[str]:
    """`hash_of` each of them."""
    return frozenset(hash_of(str(name)) for name in names)


def _among(names: np.ndarray, known: frozenset[str]) -> np.ndarray:
    return np.array([hash_of(str(name)) in known for name in names], bool)
