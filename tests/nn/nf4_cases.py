"""Matrices for NF4, and what is kept of their quantised form; nf4_oracle.json holds it as bitsandbytes makes it.

Inputs are made of integers, so that every float32 of them is exact and the file need not hold them.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

ORACLE = Path(__file__).with_name("nf4_oracle.json")
SAMPLES = 97  # values kept of a dequantised matrix, evenly spread


def bell(seed: int, out: int, in_: int) -> np.ndarray:
    """[out, in_] float32: sums of four integers, about normal, standard deviation 0.036."""
    return np.random.default_rng(seed).integers(-1024, 1025, (4, out, in_)).sum(0).astype(np.float32) / 2**15


def outliers() -> np.ndarray:
    """One weight in 500 is 256 times as large; some blocks therefore hold nothing but one number and almost zeros."""
    matrix = bell(2, 24, 4096)
    matrix[np.random.default_rng(3).integers(0, 500, matrix.shape) == 0] *= 256
    return matrix


def special(book: np.ndarray) -> np.ndarray:
    """Rows of two blocks: zeros and one repeated value; values on, just below and just above each bound; tiny ones."""
    bounds = (book[:-1] + book[1:]) / 2
    rows = np.zeros((5, 128), np.float32)
    rows[0, 64:] = 0.15625
    rows[1, :64] = -0.3
    for row, scale in ((2, 1.0), (3, 0.125)):  # powers of two: x / absmax is exact
        around = np.stack([np.nextafter(bounds, -2, dtype=np.float32), bounds, np.nextafter(bounds, 2)], axis=1)
        rows[row, 1:46] = around.reshape(-1) * scale
        rows[row, 0] = scale
        rows[row, 64:79] = bounds[::-1] * scale
        rows[row, 127] = -scale
    rows[4, 64:] = np.arange(64) * np.float32(2.0**-120)
    return rows


def cases(book: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices by name; book is the NF4 code book."""
    return {
        "bell": bell(1, 576, 192),  # 1,728 blocks: the last second-level block is not full
        "long": bell(4, 3, 1536),
        "outliers": outliers(),
        "special": special(book),
        "zeros": np.zeros((4, 64), np.float32),
        "constant": np.full((4, 128), -0.75, np.float32),
    }


def record(codes, absmax_codes, absmax_scale, absmax_offset, values) -> dict:
    """What is compared: hashes and samples of the arrays of one quantised matrix."""
    codes, absmax_codes, values = np.ravel(codes), np.ravel(absmax_codes), np.ravel(values)
    return {
        "codes_sha256": hashlib.sha256(codes.astype(np.uint8).tobytes()).hexdigest(),
        "codes_hex": codes[:256].astype(np.uint8).tobytes().hex(),
        "absmax_codes": [int(code) for code in absmax_codes],
        "absmax_scale": [float(scale) for scale in np.ravel(absmax_scale)],
        "absmax_offset": float(absmax_offset),
        "values_sha256": hashlib.sha256(values.astype(np.float32).tobytes()).hexdigest(),
        "values": [float(value) for value in values[np.linspace(0, values.size - 1, SAMPLES).astype(int)]],
    }


def oracle() -> dict[str, dict]:
    """The records by bitsandbytes 0.50.2 on a CPU; tests/peer/test_bitsandbytes.py makes them again."""
    return json.loads(ORACLE.read_text(encoding="utf-8"))["cases"]
