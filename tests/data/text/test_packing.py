"""Packing against a plain best-fit-decreasing loop, and rows against token-by-token definitions."""

import itertools
import time

import numpy as np
import pytest

from medjax.data.text.documents import Document
from medjax.data.text.packing import Packing, best_fit_decreasing, fill_rows


def plain_best_fit_decreasing(lengths, window):
    """One document at a time, longest first, into the fullest row with room: the tokens of each row.

    Rows of equal room may be taken either way, so which lengths meet is not unique; how full the rows get is.
    """
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= window]
        if fitting:
            min(fitting, key=lambda row: window - sum(row)).append(length)
        else:
            rows.append([length])
    return sorted(map(sum, rows))


def lengths_like(kind, count, window, seed=0):
    random = np.random.default_rng(seed)
    drawn = {
        "uniform": random.integers(1, window + 1, count),
        "exam": random.lognormal(5, 0.8, count),
        "short": random.integers(1, max(2, window // 16), count),
        "half": random.integers(window // 2, window + 1, count),
        "one": np.full(count, window // 3),
    }[kind]
    return np.clip(drawn.astype(int), 1, window)


def rows_of(lengths, row_of_place):
    ordered = np.sort(lengths)[::-1]
    return sorted(ordered[row_of_place == row].sum() for row in range(row_of_place.max() + 1))


@pytest.mark.parametrize("kind", ["uniform", "exam", "short", "half", "one"])
@pytest.mark.parametrize(("count", "window"), [(1, 7), (40, 7), (300, 64), (500, 512)])
def test_equals_the_plain_loop(kind, count, window):
    lengths = lengths_like(kind, count, window)
    assert rows_of(lengths, best_fit_decreasing(lengths, window)) == plain_best_fit_decreasing(lengths.tolist(), window)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "exam", "short", "half", "one"])
def test_every_document_once_an_epoch_and_no_row_too_long(kind, pack):
    for count, window, seed in itertools.product((1, 2, 37, 400), (8, 512), range(3)):
        lengths = lengths_like(kind, count, window, seed)
        packing = Packing(lengths, window, pack=pack)
        for number in range(3):
            epoch = packing.epoch(seed, number)
            assert sorted(epoch.documents) == list(range(count))
            assert len(epoch.starts) == packing.rows + 1
            rows = [epoch.row(r) for r in range(packing.rows)]
            assert all(len(row) for row in rows)
            assert max(lengths[row].sum() for row in rows) <= window
            if not pack:
                assert [len(row) for row in rows] == [1] * count


def test_shuffles_differ_between_epochs_and_seeds_and_repeat():
    packing = Packing(lengths_like("exam", 500, 512), 512)
    first = packing.epoch(3, 0)
    assert all((a == b).all() for a, b in zip(first, Packing(packing._lengths, 512).epoch(3, 0), strict=True))
    for seed, number in ((3, 1), (4, 0), (0, 3)):
        other = packing.epoch(seed, number)
        assert (other.documents != first.documents).mean() > 0.9
    order = packing.in_order()
    assert sorted(order.documents) == list(range(500))


def test_shuffle_is_that_of_splitmix64():
    def mix(x):
        mask = (1 << 64) - 1
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0
    seed, epoch, what = 5, 2, 1
    state = mix(mix(mix(0 ^ seed) ^ epoch) ^ what)
    keys = [mix(mix(i) ^ state) for i in range(50)]
    found = Packing(np.full(50, 4), 4).epoch(seed, epoch)
    # one document a row: the row of place i is the rank of its key, and which document is at place i is drawn apart
    drawn = mix(mix(mix(0 ^ seed) ^ epoch) ^ 2)
    documents = sorted(range(50), key=lambda i: mix(mix(i) ^ drawn))
    ranks = np.argsort(np.argsort(np.array(keys, np.uint64)))
    expected = np.empty(50, int)
    expected[ranks] = documents
    assert found.documents.tolist() == expected.tolist()


def test_rows_and_companions_are_mixed():
    """Over many epochs every document meets every batch, and any two of one length swap places evenly."""
    packing = Packing(np.array([4] * 8 + [2] * 8), 6)
    first = np.array([[epoch.row(0)[0], epoch.row(0)[-1]] for epoch in (packing.epoch(0, n) for n in range(2000))])
    counts = np.bincount(first.ravel(), minlength=16)
    assert counts.sum() == 4000
    assert abs(counts - 250).max() < 75  # five standard deviations


@pytest.mark.parametrize(
    ("kind", "window", "least"), [("exam", 512, 0.97), ("short", 512, 0.99), ("uniform", 4096, 0.97)]
)
def test_rows_are_full(kind, window, least):
    packing = Packing(lengths_like(kind, 5000, window), window)
    assert packing.fill > least
    assert packing.fill == pytest.approx(packing._lengths.sum() / (packing.rows * window))


def test_a_million_documents_take_seconds():
    lengths = lengths_like("exam", 1_000_000, 2048)
    start = time.perf_counter()
    epoch = Packing(lengths, 2048).epoch(0, 0)
    assert time.perf_counter() - start < 20, "usually about one second"
    assert np.bincount(epoch.documents, minlength=len(lengths)).tolist() == [1] * len(lengths)


def test_bad_lengths():
    with pytest.raises(ValueError, match="packing: got no documents, expected at least one"):
        Packing(np.array([], int), 8)
    with pytest.raises(ValueError, match="document 1 has 9 tokens, expected 1 to 8, the window"):
        Packing(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="document 0 has 0 tokens, expected 1 to 8"):
        Packing(np.array([0, 8]), 8)


def document(tokens, counted, name="d"):
    return Document(np.array(tokens, np.int32), np.array(counted, bool), name)


def test_rows_by_hand():
    a = document([5, 6, 7], [0, 0, 1])
    b = document([8, 9], [0, 1])
    batch = fill_rows([[a, b], [], [b]], 6)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [0] * 6, [8, 9, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 0, 9, 0, 0], [0] * 6, [9, 0, 0, 0, 0, 0]]
    assert batch.weights.tolist() == [[0, 1, 0, 1, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6, [0, 1, 0, 0, 0, 0]]
    assert batch.ends.tolist() == [[3, 3, 3, 5, 5, 6], [1, 2, 3, 4, 5, 6], [2, 2, 3, 4, 5, 6]]
    assert [array.dtype.name for array in batch] == ["int32", "int32", "float32", "int32", "int32"]
    with pytest.raises(ValueError, match="row 0: document long ends at token 7, expected 6 at most"):
        fill_rows([[a, document([1] * 4, [1] * 4, "long")]], 6)


def test_rows_against_the_definition():
    """Token t sees s when s <= t < ends[s]: here, exactly when both are of one document."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 12, 40)
    made = [document(random.integers(1, 99, n), random.random(n) < 0.5) for n in lengths]
    packing = Packing(lengths, 24)
    epoch = packing.epoch(0, 0)
    batch = fill_rows([[made[i] for i in epoch.row(r)] for r in range(packing.rows)], 24)
    for r in range(packing.rows):
        owner, offset = [], []
        for i in epoch.row(r):
            owner += [i] * lengths[i]
            offset += range(lengths[i])
        for t in range(24):
            if t >= len(owner):
                assert (batch.tokens[r, t], batch.weights[r, t], batch.ends[r, t]) == (0, 0, t + 1)
                continue
            this, place = made[owner[t]], offset[t]
            last = place + 1 == lengths[owner[t]]
            assert batch.tokens[r, t] == this.tokens[place]
            assert batch.positions[r, t] == place
            assert batch.targets[r, t] == (0 if last else this.tokens[place + 1])
            assert batch.weights[r, t] == (0 if last else this.counted[place + 1])
            assert [s for s in range(24) if s <= t < batch.ends[r, s]] == [
                s for s in range(t + 1) if owner[s] == owner[t]
            ]
