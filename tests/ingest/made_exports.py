"""Folders as hospitals export them: WFDB records and plain tables of made ECGs; readers that misbehave."""

import os
import signal
import time

import numpy as np
from made_records import made_signal

from medjax.data.ecg.leads import LEADS
from medjax.ingest.reading import Outcome, read_source


def write_wfdb(folder, name, seed, *, seconds=10.0, rate=500, age="51", sex="Female", signal=None):
    """A WFDB record of two files with CinC's comments; signal in mV, else made of the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    signal = made_signal(seed, seconds=seconds, rate=rate) if signal is None else signal
    steps = np.round(signal * 1000).astype("<i2")
    (folder / f"{name}.dat").write_bytes(steps.T.tobytes())
    lines = [f"{name} 12 {rate} {steps.shape[1]}"]
    for lead, row in zip(LEADS, steps, strict=True):
        checksum = int(row.astype(np.int64).sum()) % 65536
        lines.append(f"{name}.dat 16 1000/mV 16 0 {row[0]} {checksum - 65536 * (checksum > 32767)} 0 {lead}")
    lines += [f"#Age: {age}", f"#Sex: {sex}", "#Dx: 426783006"]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    return folder / f"{name}.hea"


def export(folder):
    """Six good records in two wards, one of them a copy, one altered, an id used twice; three bad files."""
    write_wfdb(folder / "east", "E1", 1, age="63", sex="Male")
    write_wfdb(folder / "east", "E2", 2)
    write_wfdb(folder / "east", "E3", 1)  # the samples of E1
    write_wfdb(folder / "west", "E1", 4, age="NaN")
    write_wfdb(folder / "west", "W2", 5, seconds=20.0)
    write_wfdb(folder / "west", "W3", 2, signal=0.5 * made_signal(2)[:, 400:])
    write_wfdb(folder / "bad", "B1", 7)
    (folder / "bad" / "B1.dat").write_bytes((folder / "bad" / "B1.dat").read_bytes()[:1000])
    write_wfdb(folder / "bad", "B2", 8, signal=np.zeros((12, 5000), np.float32))
    (folder / "bad" / "B3.xml").write_text("<html></html>")
    return folder


def disturbed(source):
    """Reads as always, but a file called dies kills the process, one called exits ends it, one called hangs waits, one
    called greedy takes 3.2 GB."""
    name = source.path.stem
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exits":
        os._exit(3)
    if name == "hangs":
        time.sleep(60)
    if name == "greedy":
        np.ones(400_000_000)  # 3.2 GB
    if name == "fails":
        raise KeyError("a bug")
    return read_source(source) if source.path.exists() else Outcome(source)
