"""Batches of ECG windows: the same rows whoever asks, each record once an epoch, cuts spread over the record."""

from collections import Counter

import numpy as np
import pytest

from medjax.data.ecg.batches import EcgBatch, EcgBatches, EcgHeldOut
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import Preprocessing, prepare, prepared_samples, window_starts, windows
from medjax.data.ecg.simulation import LOW_EF, Simulation, records

P = Preprocessing(sampling_rate_hz=100.0, samples=50, leads=("I", "II", "V1"))
LENGTHS = [(100.0, 50), (100.0, 90), (257.0, 700), (500.0, 100), (250.0, 1000), (100.0, 50), (333.3, 1), (100.0, 151)]


class Made:
    """A data set in memory; counts what is read."""

    def __init__(self, lengths):
        generator = np.random.default_rng(0)
        self.records = []
        for i, (rate, n) in enumerate(lengths):
            signal = generator.normal(size=(12, n)).astype(np.float32)
            signal[1, n // 3 : n // 2] = np.nan
            self.records.append(EcgRecord(f"ecg{i}", signal, rate, ("measured",) * 12))
        self.index = {
            "id": np.array([record.id for record in self.records]),
            "samples": np.array([record.samples for record in self.records]),
            "sampling_rate_hz": np.array([record.sampling_rate_hz for record in self.records]),
        }
        self.reads = 0

    def __len__(self):
        return len(self.records)

    def read(self, places):
        self.reads += len(places)
        return [self.records[place] for place in places]


@pytest.fixture(scope="module")
def made():
    return Made(LENGTHS)


def targets(count):
    known = np.stack([np.arange(count, dtype=float), 10 + np.arange(count, dtype=float)], 1)
    known[2, 0] = known[3] = np.nan
    return known


def same(first, second):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def joined(parts):
    return EcgBatch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def test_hosts_together_have_the_whole_batch(made):
    batches = EcgBatches(made, range(8), P, rows=6, seed=3, targets=targets(8))
    for step in (0, 1, 7, 1000):
        whole = batches.batch_at(step)
        assert whole.signal.shape == whole.valid.shape == (6, 3, 50)
        assert [part.dtype for part in whole] == [np.float32, bool, np.float32, np.float32, np.uint32]
        for hosts in (2, 3, 6):
            parts = [slice(i * (6 // hosts), (i + 1) * (6 // hosts)) for i in range(hosts)]
            assert same(joined([batches.batch_at(step, rows) for rows in parts]), whole)
            assert [i for rows in parts for i in batches.record_ids(step, rows)] == batches.record_ids(step)


def test_a_batch_follows_from_seed_and_step_alone(made):
    first, fresh = (EcgBatches(made, range(8), P, rows=4, seed=3) for _ in range(2))
    first.batch_at(0)
    assert same(first.batch_at(33), fresh.batch_at(33))
    assert all(same(a, b) for a, b in zip(fresh.iterate(30, 36), map(first.batch_at, range(30, 36)), strict=True))
    assert not same(EcgBatches(made, range(8), P, rows=4, seed=4).batch_at(33), fresh.batch_at(33))
    # rows follow the line, not the batch: half as large batches have the same rows
    halves = EcgBatches(made, range(8), P, rows=2, seed=3)
    assert same(joined([halves.batch_at(66), halves.batch_at(67)]), fresh.batch_at(33))


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
def test_every_chosen_record_once_an_epoch(made, rows):
    chosen = [7, 0, 2, 4, 5]
    batches = EcgBatches(made, chosen, P, rows=rows, seed=1)
    assert batches.rows_per_epoch == 5
    assert batches.steps_per_epoch == 5 / rows
    line = [name for step in range(batches.steps(4)) for name in batches.record_ids(step)]
    for epoch in range(4):
        assert Counter(line[5 * epoch : 5 * epoch + 5]) == {f"ecg{i}": 1 for i in chosen}
    assert len({tuple(line[5 * epoch : 5 * epoch + 5]) for epoch in range(4)}) > 1


def test_rows_are_cuts_of_the_prepared_record(made):
    batches = EcgBatches(made, range(8), P, rows=8, seed=5)
    ready = {record.id: prepare(record, P) for record in made.records}
    starts = {record.id: set() for record in made.records}
    for step in range(60):
        batch = batches.batch_at(step)
        for row, name in enumerate(batches.record_ids(step)):
            signal, valid = ready[name]
            free = signal.shape[1] - 50
            if free <= 0:
                assert np.array_equal(batch.signal[row, :, : signal.shape[1]], signal)
                assert not batch.valid[row, :, signal.shape[1] :].any()
                assert not batch.signal[row, :, signal.shape[1] :].any()
                continue
            found = [s for s in range(free + 1) if np.array_equal(signal[:, s : s + 50], batch.signal[row])]
            assert len(found) == 1
            assert np.array_equal(valid[:, found[0] : found[0] + 50], batch.valid[row])
            starts[name].add(found[0])
    # 60 draws out of 41, 223, 351 and 102 places: both ends of the record are reached, and most draws differ
    for name, expected in (("ecg1", 28), ("ecg2", 45), ("ecg4", 48), ("ecg7", 40)):
        assert len(starts[name]) >= expected
        assert min(starts[name]) <= 0.1 * (ready[name][0].shape[1] - 50)
        assert max(starts[name]) >= 0.9 * (ready[name][0].shape[1] - 50)


def test_unknown_targets_weigh_nothing(made):
    known = targets(8)
    batches = EcgBatches(made, range(8), P, rows=8, seed=0, targets=known)
    batch = batches.batch_at(0)
    places = [int(name[3:]) for name in batches.record_ids(0)]
    assert np.array_equal(batch.weights, np.isfinite(known)[places])
    assert np.array_equal(batch.targets, np.nan_to_num(known)[places])
    without = EcgBatches(made, range(8), P, rows=8, seed=0).batch_at(0)
    assert without.targets.tolist() == [[0.0]] * 8
    assert without.weights.tolist() == [[1.0]] * 8


def test_seeds_of_rows_differ(made):
    batches = EcgBatches(made, range(8), P, rows=8, seed=0)
    seeds = np.concatenate([batches.batch_at(step).seeds for step in range(200)])
    assert len(set(seeds.tolist())) == 1600
    assert abs(seeds.mean() / 2**32 - 0.5) < 0.03
    bits = (seeds[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 0.06


def test_held_out_has_every_window_once(made):
    held_out = EcgHeldOut(made, [4, 1, 3, 2], P, rows=3, targets=targets(8))
    expected = []
    for i in (4, 1, 3, 2):
        signal, valid = prepare(made.records[i], P)
        cuts = windows(signal, valid, window_starts(signal.shape[1], 50), 50)
        expected += [(i, *cut) for cut in zip(*cuts, strict=True)]
    assert held_out.filled == len(expected) == 3 + 2 + 1 + 3
    assert held_out.places.tolist() == [i for i, *_ in expected]
    assert len(held_out) == 3
    batches = [held_out.batch_at(step) for step in range(3)]
    whole = joined(batches)
    assert [name for step in range(3) for name in held_out.record_ids(step)] == [f"ecg{i}" for i, *_ in expected]
    for row, (i, signal, valid) in enumerate(expected):
        assert np.array_equal(whole.signal[row], signal)
        assert np.array_equal(whole.valid[row], valid)
        assert np.array_equal(whole.weights[row], np.isfinite(targets(8)[i]))
    assert same(joined([held_out.batch_at(0, slice(0, 1)), held_out.batch_at(0, slice(1, 3))]), batches[0])
    with pytest.raises(IndexError, match="held-out batch: got 3, expected 0 to 2"):
        held_out.batch_at(3)


def test_rows_that_fill_up_weigh_nothing(made):
    held_out = EcgHeldOut(made, [4, 1], P, rows=4)
    last = held_out.batch_at(1)
    assert last.weights.tolist() == [[1.0], [0.0], [0.0], [0.0]]
    assert not last.valid[1:].any()
    assert not last.signal[1:].any()
    assert held_out.record_ids(1) == ["ecg1"]
    empty = held_out.batch_at(1, slice(2, 4))
    assert empty.signal.shape == (2, 3, 50)
    assert not empty.weights.any()


def test_windows_of_a_record_are_read_once(made):
    held_out = EcgHeldOut(made, [4], P, rows=3)
    made.reads = 0
    held_out.batch_at(0)
    assert made.reads == 1


def test_long_records_are_read_one_by_one_and_never_prepared_as_a_whole(monkeypatch):
    """A batch of them would fill the memory."""
    made = Made([(100.0, 900), (100.0, 90_000), (100.0, 60_000), (100.0, 500)])
    together = []
    read, plain = made.read, prepare
    made.read = lambda places: together.append(list(places)) or read(places)
    lengths = []
    monkeypatch.setattr("medjax.data.ecg.signal.prepare", lambda r, p: lengths.append(r.samples) or plain(r, p))
    batches = EcgBatches(made, range(4), P, rows=4, seed=0)
    batch = batches.batch_at(0)
    assert sorted(map(sorted, together)) == [[0, 3], [1], [2]]
    assert max(lengths) <= 50 + 2 * 1500  # 5 seconds and 5 periods of 0.5 Hz on both sides
    for row, name in enumerate(batches.record_ids(0)):
        signal, _ = plain(made.records[int(name[3:])], P)
        free = signal.shape[1] - 50 + 1
        gaps = [np.abs(signal[:, s : s + 50] - batch.signal[row]).max() for s in range(free)]
        assert min(gaps) < 1e-3


def test_from_disk_to_batch(tmp_path):
    """Simulated patients through ArrayRecord: the rows are those of the records in memory."""
    made = {record.id: record for record in records(6, 2, Simulation(seconds=3.0))}
    dataset = write_dataset(tmp_path / "data", made.values())
    p = Preprocessing(samples=700, leads=("II", "V5"))
    low = dataset.labels[LOW_EF][:, None]
    batches = EcgBatches(dataset, range(6), p, rows=4, seed=0, targets=low)
    for step, batch in enumerate(batches.iterate(0, 3)):
        for row, name in enumerate(batches.record_ids(step)):
            signal, _ = prepare(made[name], p)
            differences = [np.abs(signal[:, s : s + 700] - batch.signal[row]).max() for s in range(51)]
            assert min(differences) < 1e-6
            assert batch.targets[row, 0] == made[name].labels[LOW_EF]
        assert batch.weights.all()


def test_lengths_are_known_before_reading(made):
    for record in made.records:
        assert prepared_samples(record.samples, record.sampling_rate_hz, P) == prepare(record, P)[0].shape[1]


@pytest.mark.parametrize(
    ("chosen", "known", "message"),
    [
        ([], None, r"records: got none of 8, expected at least 1"),
        ([0, 8], None, r"records: got places 0 to 8, expected 0 to 7"),
        ([-1], None, r"records: got places -1 to -1"),
        ([0, 1], np.zeros((2, 1)), r"targets: got shape \(2, 1\), expected \(8, targets\), a row for each record"),
        ([0, 1], np.zeros(8), r"targets: got shape \(8,\), expected \(8, targets\)"),
    ],
)
def test_what_does_not_fit_is_refused(made, chosen, known, message):
    for kind in (EcgBatches, EcgHeldOut):
        with pytest.raises(ValueError, match=message):
            kind(made, chosen, P, rows=2, seed=0, targets=known)
