"""ECG records on disk: written once by a tensorflow-datasets builder, on one machine or under Apache Beam.

    OUT/ecg_records/1.0.0/…   ArrayRecord files, one example a record: steps, scale, facts of the file (storage.py)
        index.parquet         what the records are called, their patients, labels, twins; the order (index.py)

Examples are keyed by source and number, so that no two collide, and what has to look at all records at once (ids,
duplicates, labels) is decided afterwards from the facts, in the same way whoever wrote them, in whatever order: one
machine writes them as they come, Beam by a hash of the key. TensorFlow is not needed.
Source of the format: tensorflow-datasets 4.9, file_format "array_record".
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medjax.data.ecg.dataset import NAME, SPLIT, VERSION, EcgDataset, open_examples
from medjax.data.ecg.duplicates import CORRELATION, find_twins
from medjax.data.ecg.index import Facts, make_index, write_index
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.storage import Row, to_row
from medjax.data.examples import write_in_order

_READ_TOGETHER = 256  # examples
_SHARD = 4096  # examples of a file: half a gigabyte of 12 x 5,000 samples


class EcgRecords(tfds.core.GeneratorBasedBuilder):
    """ECGs as tensorflow-datasets examples, made by Beam; the features are those of `storage.to_row`.

    examples  what makes them: () -> PTransform of (key, row)
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, examples: Callable[[], Any], **options: Any) -> None:
        self._examples = examples
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(_features()))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Any:
        return self._examples()

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Nothing was downloaded."""


def _features() -> dict[str, Any]:
    text = tfds.features.Text()
    # as bytes: an Example has no numbers of 64 bits but whole ones, and spends up to ten bytes on those
    number = tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
    return {
        "signal": tfds.features.Tensor(shape=(len(LEADS), None), dtype=np.int16, encoding="bytes"),
        "fingerprint": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        **dict.fromkeys(("scale", "sampling_rate_hz", "age_years", "einthoven_mv"), number),
        **dict.fromkeys(("mains_hz", "number"), np.int64),
        **dict.fromkeys(("id", "status", "sex", "patient", "device", "time", "source", "format"), text),
        **dict.fromkeys(("labels", "codes", "notes", "waveform"), text),
    }


def key_of(row: Mapping[str, Any]) -> str:
    """The key of an example: no two records of a data set have the same."""
    return f"{row['source']}#{row['number']}"


def write_examples(
    folder: Path, examples: Callable[[], Any], *, beam_runner: Any = None, beam_options: Any = None
) -> None:
    """Write OUT/ecg_records from what `examples()` gives: rows with their keys, or a Beam PTransform of them.

    tensorflow-datasets cannot write an empty set: `examples` has to raise before it ends without a row.
    """
    if beam_runner is None:
        rows = (row for _, row in examples())
        write_in_order(folder / NAME / VERSION, SPLIT, _features(), rows, shard_examples=_SHARD)
        return
    builder = EcgRecords(examples=examples, data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(
        try_download_gcs=False,
        beam_runner=beam_runner,
        beam_options=beam_options,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
    )
    tfds.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as downloads:  # there are none, but their folder is made
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    finally:
        tfds.enable_progress_bar()


def read_facts(folder: Path) -> Iterator[Facts]:
    """What the examples of OUT/ecg_records say besides the signal, a row of the files at a time and in their order."""
    examples = open_examples(folder)
    for start in range(0, len(examples), _READ_TOGETHER):
        together = range(start, min(start + _READ_TOGETHER, len(examples)))
        for row, example in zip(together, examples.__getitems__(list(together)), strict=True):
            yield Facts.of(row, example)


def write_dataset(folder: str | Path, records: Iterable[EcgRecord], *, correlation: float = CORRELATION) -> EcgDataset:
    """Write records that are in memory (a simulation, a test) as a data set, and open it.

    correlation  from which on two records are the same recording

    The folder must not hold a data set. Raises ValueError where there is no record.
    """
    folder = Path(folder)

    def examples() -> Iterator[tuple[str, Row]]:
        number = -1
        for number, record in enumerate(records):
            example = to_row(record, number=number)
            yield key_of(example), example
        if number < 0:
            raise ValueError(f"{folder}: got no record, expected at least one to write; give some.")

    write_examples(folder, examples)
    facts = sorted(read_facts(folder), key=lambda fact: (fact.source, fact.number))
    twins = find_twins(facts, open_examples(folder), correlation=correlation)
    write_index(folder, make_index(facts, twins.recording))
    return EcgDataset(folder)
