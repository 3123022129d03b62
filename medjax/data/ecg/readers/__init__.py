"""Readers of ECG files: `read_ecg` for one file, `find_ecgs` and `survey` for a folder."""

from medjax.data.ecg.readers.registry import find_ecgs, read_ecg, survey

__all__ = ["find_ecgs", "read_ecg", "survey"]
