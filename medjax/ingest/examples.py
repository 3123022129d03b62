"""Recordings drawn for the report of an ingest: a plain one, then those with something to see."""

from collections.abc import Iterator

import numpy as np

from medjax.data.ecg.dataset import EcgDataset
from medjax.report.ecg_paper import Header, ecg_sheet


def drawn_examples(dataset: EcgDataset, count: int) -> list[tuple[str, str]]:
    """Title and SVG of so many recordings on ECG paper."""
    return [_drawn(dataset, place) for place in _chosen(dataset, count)]


def _chosen(dataset: EcgDataset, count: int) -> list[int]:
    """Places of records: of each format in turn, complete ones first, then incomplete ones of that format."""
    formats, usable = dataset.index["format"], dataset.index["usable"].sum(1)

    def of_format(name: str) -> Iterator[int]:
        places = np.flatnonzero(formats == name)
        complete = usable[places] == usable[places].max()
        yield from places[complete][:1]
        yield from places[~complete][:1]
        yield from places[complete][1:]

    names, counts = np.unique(formats, return_counts=True)
    queues = [of_format(name) for name in names[np.argsort(-counts, kind="stable")]]
    chosen: list[int] = []
    while queues and len(chosen) < count:
        for queue in list(queues):
            place = next(queue, None)
            if place is None:
                queues.remove(queue)
            elif len(chosen) < count:
                chosen.append(int(place))
    return chosen


def _drawn(dataset: EcgDataset, place: int) -> tuple[str, str]:
    record = dataset[place]
    header = Header(
        record.id,
        age_years=record.age_years,
        sex=record.sex,
        device=record.device,
        time=record.time,
        remarks=record.notes,
    )
    sheet = ecg_sheet(record.signal, record.sampling_rate_hz, header, status=record.status)
    return f"{record.id} ({record.format}, {record.source})", sheet.svg()
