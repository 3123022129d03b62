"""The index of an ECG data set, for tests that need no signals."""

from pathlib import Path

import numpy as np


class Data:
    """The index of a data set without the data."""

    def __init__(self, sources, folders=(Path("x"),), folder=None, **columns):
        n = len(sources)
        self.folders = list(folders)
        self.index = {
            "source": np.array(sources),
            "folder": np.zeros(n, int) if folder is None else np.array(folder),
            "age_years": np.linspace(20, 80, n),
            "sex": np.array((["female", "male", ""] * n)[:n]),
            "device": np.array([""] * n),
            "format": np.array(["WFDB"] * n),
            "sampling_rate_hz": np.full(n, 500.0),
            "mains_hz": np.zeros(n, int),
            "labels": {},
            **columns,
        }

    def __len__(self):
        return len(self.index["source"])
