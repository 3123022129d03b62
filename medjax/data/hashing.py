"""A shuffle without a state: hashes of (key, number), the same on every machine and with every library."""

import numpy as np


def hashes(numbers: np.ndarray, *key: int) -> np.ndarray:
    """A hash of (key, number) for each number, [n] uint64: SplitMix64's mixer over a running state.

    numbers  [n] whole numbers, 0 or more
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = mix(state ^ np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return mix(mix(numbers.astype(np.uint64)) ^ state)


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble integers: [n] uint64 -> [n] uint64, one to one."""
    # Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), the constants of SplitMix64
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
