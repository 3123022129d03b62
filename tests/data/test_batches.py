"""Batches as a function of (seed, step): the same for any number of processes, after any resume, on any mesh."""

from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.data.batches import local_rows, to_global
from medjax.data.text.batches import DocumentBatches, HeldOutDocuments, real_tokens
from medjax.data.text.documents import Document, DocumentList
from medjax.data.text.packing import Batch

WINDOW = 32


def made(count, seed=0, longest=WINDOW):
    """Documents whose tokens all are their own number plus one, so that a batch tells which it holds."""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, count)
    return DocumentList(
        Document(np.full(n, i + 1, np.int32), np.arange(n) > n // 2, f"doc{i}") for i, n in enumerate(lengths)
    )


def same(first, second):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def joined(parts):
    return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@pytest.fixture(scope="module")
def batches():
    return DocumentBatches(made(101), window=WINDOW, rows=8, seed=7)


def test_hosts_together_have_the_whole_batch(batches):
    for step in (0, 1, 5, 40, 1000):
        whole = batches.batch_at(step)
        assert whole.tokens.shape == (8, WINDOW)
        for hosts in (1, 2, 4, 8):
            each = 8 // hosts
            parts = [slice(i * each, (i + 1) * each) for i in range(hosts)]
            assert same(joined([batches.batch_at(step, rows) for rows in parts]), whole)
            assert [i for rows in parts for i in batches.record_ids(step, rows)] == batches.record_ids(step)


def test_batch_does_not_depend_on_what_was_asked_before(batches):
    fresh = DocumentBatches(made(101), window=WINDOW, rows=8, seed=7)
    assert same(fresh.batch_at(33), batches.batch_at(33))
    batches.batch_at(2)
    assert same(fresh.batch_at(33), batches.batch_at(33))
    other = DocumentBatches(made(101), window=WINDOW, rows=8, seed=8)
    assert not same(other.batch_at(33), batches.batch_at(33))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("count", "rows"), [(101, 8), (5, 8), (64, 1), (1, 3)])
def test_every_document_once_an_epoch(count, rows, pack):
    """Rows of consecutive epochs follow each other without a gap, whatever the batch size."""
    documents = made(count)
    batches = DocumentBatches(documents, window=WINDOW, rows=rows, seed=1, pack=pack)
    each = batches.rows_per_epoch
    assert batches.steps_per_epoch == each / rows
    epochs = 3
    steps = batches.steps(epochs)
    assert (steps - 1) * rows < epochs * each <= steps * rows
    line = [batches.record_ids(step, slice(r, r + 1)) for step in range(steps) for r in range(rows)]
    for epoch in range(epochs):
        seen = Counter(name for row in line[epoch * each : (epoch + 1) * each] for name in row)
        assert seen == {f"doc{i}": 1 for i in range(count)}
    if not pack:
        assert each == count
        assert batches.fill == pytest.approx(documents.lengths.sum() / (count * WINDOW))


def test_ids_are_those_of_the_tokens(batches):
    batch = batches.batch_at(9)
    names = [f"doc{token - 1}" for row in batch.tokens for token in dict.fromkeys(row.tolist()) if token]
    assert names == batches.record_ids(9)
    assert real_tokens(batch) == np.count_nonzero(batch.tokens)


def test_iterator_gives_the_same_batches_from_any_step(batches):
    for first, rows in ((0, None), (37, None), (5, slice(2, 4))):
        found = list(batches.iterate(first, first + 9, rows=rows, threads=3))
        assert len(found) == 9
        for step, batch in enumerate(found, first):
            assert isinstance(batch, Batch)
            assert same(batch, batches.batch_at(step, rows))
    endless = batches.iterate(3)
    assert all(same(next(endless), batches.batch_at(step)) for step in range(3, 20))


def test_iterator_raises_what_a_batch_raises():
    class Damaged(DocumentList):
        def __getitem__(self, index):
            raise ValueError(f"document {index} cannot be read")

    broken = DocumentBatches(Damaged([made(1)[0]]), window=WINDOW, rows=1, seed=0)
    with pytest.raises(ValueError, match="document 0 cannot be read"):
        next(broken.iterate(0))


@pytest.mark.parametrize(("count", "rows"), [(101, 8), (3, 8), (16, 4)])
def test_held_out_batches_cover_every_document_once(count, rows):
    documents = made(count)
    held = HeldOutDocuments(documents, window=WINDOW, rows=rows)
    found = [held.batch_at(i) for i in range(len(held))]
    assert {batch.tokens.shape for batch in found} == {(rows, WINDOW)}
    assert Counter(i for n in range(len(held)) for i in held.record_ids(n)) == {f"doc{i}": 1 for i in range(count)}
    assert sum(batch.weights.sum() for batch in found) == documents.counts.sum()
    assert sum(map(real_tokens, found)) == documents.lengths.sum()
    parts = [joined([held.batch_at(i, slice(r, r + 1)) for r in range(rows)]) for i in range(len(held))]
    assert all(same(a, b) for a, b in zip(parts, found, strict=True))
    with pytest.raises(IndexError, match=f"got {len(held)}, expected 0 to {len(held) - 1}"):
        held.batch_at(len(held))


def test_padding_rows_weigh_nothing():
    held = HeldOutDocuments(made(3, longest=4), window=WINDOW, rows=4)
    batch = held.batch_at(0)
    assert (batch.tokens[1:] == 0).all()
    assert (batch.weights[1:] == 0).all()
    assert batch.ends[1:].tolist() == [list(range(1, WINDOW + 1))] * 3


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        ({"data": 8}, PartitionSpec("data")),
        ({"data": 4, "sequence": 2}, PartitionSpec("data", "sequence")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, PartitionSpec(("data", "fsdp"))),
        ({"sequence": 8}, PartitionSpec(None, "sequence")),
        ({"data": 1}, PartitionSpec()),
    ],
)
def test_global_arrays_hold_the_batch_however_it_is_split(batches, axes, spec):
    devices = np.array(jax.devices()[: int(np.prod(list(axes.values())))]).reshape(tuple(axes.values()))
    sharding = NamedSharding(Mesh(devices, tuple(axes)), spec)
    batch = batches.batch_at(4)
    like = whole(batch, sharding)
    assert local_rows(like) == slice(0, 8)
    placed = to_global(batch, like)
    for array, host in zip(placed, batch, strict=True):
        assert array.sharding == sharding
        assert array.dtype == host.dtype
        np.testing.assert_array_equal(np.asarray(array), host)
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), host[shard.index])


def whole(batch, sharding):
    """The shapes of a batch with a sharding, as a step program has them; jax takes no made-up sharding."""
    return Batch(*(SimpleNamespace(shape=array.shape, sharding=sharding) for array in batch))


class SecondProcess:
    """What the sharding of the second of two processes tells: rows 4 to 8 of 8 lie here, split over four devices."""

    def addressable_devices_indices_map(self, shape):
        half, quarter = shape[0] // 2, shape[0] // 4
        rows = [slice(half, half + quarter), slice(half + quarter, None)]
        halves = [slice(0, shape[1] // 2), slice(shape[1] // 2, shape[1])]
        return {(i, j): (rows[i], halves[j]) for i in range(2) for j in range(2)}


def test_a_process_takes_the_rows_of_its_devices(batches):
    like = whole(batches.batch_at(0), SecondProcess())
    assert local_rows(like) == slice(4, 8)
    with pytest.raises(ValueError, match=r"got \(4, 32\) from row 0 on, expected rows 4 to 8 of \(8, 32\)"):
        to_global(batches.batch_at(0, slice(0, 4)), like)
    with pytest.raises(ValueError, match=r"got \(4, 16\) from row 4 on, expected rows 4 to 8 of \(8, 32\)"):
        to_global(Batch(*(array[4:, :16] for array in batches.batch_at(0))), like, first_row=4)


def test_bad_calls(batches):
    with pytest.raises(IndexError, match="step: got -1, expected 0 or more"):
        batches.batch_at(-1)
    with pytest.raises(ValueError, match=r"rows: got slice\(8, 9, None\), expected a stretch of the 8 rows"):
        batches.batch_at(0, slice(8, 9))
    with pytest.raises(ValueError, match="batch: got 0 rows, expected at least 1"):
        DocumentBatches(made(3), window=WINDOW, rows=0, seed=0)
    with pytest.raises(ValueError, match=r"document \d+ has \d+ tokens, expected 1 to 8, the window"):
        DocumentBatches(made(50), window=8, rows=2, seed=0)
