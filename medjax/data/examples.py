"""Examples in the form of tensorflow-datasets, written one after the other as they come, whatever their number.

The usual way, a builder's `download_and_prepare`, first sorts all examples by a hash, and beyond 1 GB of them it needs
TensorFlow for that. Here one batch is held at a time, and the files are read as any (`tfds.builder_from_directory`).
Source of the format: tensorflow-datasets 4.9, file_format "array_record".
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

_WRITTEN_TOGETHER = 256  # examples; the metadata are written anew each time


def write_in_order(
    place: Path,
    split: str,
    features: Mapping[str, Any],
    examples: Iterable[Mapping[str, Any]],
    *,
    shard_examples: int,
) -> None:
    """Write one split and what describes it.

    place           folder …/NAME/VERSION, which is made
    features        of tfds.features, by name
    examples        as the features say
    shard_examples  of one file

    What was written before `examples` raised an error stays: the folder must be one that can be thrown away.
    """
    import tensorflow_datasets as tfds

    place.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.DatasetIdentity(
        name=place.parent.name,
        version=tfds.core.Version(place.name),
        data_dir=str(place),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(dict(features)))
    writer = tfds.core.SequentialWriter(info, shard_examples, file_format="array_record")
    writer.initialize_splits([split])
    for together in _batches(iter(examples)):
        writer.add_examples({split: together})
    writer.close_all()


def _batches(examples: Iterator[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    while together := list(islice(examples, _WRITTEN_TOGETHER)):
        yield together
