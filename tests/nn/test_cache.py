"""One new token a sequence against the same tokens in a row; slots in groups; what int8 rounds away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.attention import BLOCK, PREFIX_BLOCK, Prefix, attention, forest
from medjax.nn.cache import Cache, Group, cached_attention, packed

HEADS, KV_HEADS, SIZE = 6, 2, 10
SCALE = 0.4
NEVER = 1e6  # what lies beyond a slot's length is not read


def drawn(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def group_of(k, v, ages, room, int8=False, entries_last=True):
    """k, v [slots, t, kv, h], of which a slot holds the first of its age."""
    rows = {"k": np.full((len(ages), KV_HEADS, room, SIZE), NEVER, np.float32)}
    rows["v"] = rows["k"].copy()
    for name, whole in (("k", k), ("v", v)):
        for slot, age in enumerate(ages):
            rows[name][slot, :, :age] = np.asarray(whole)[slot, :age].swapaxes(0, 1)
    found = packed(jnp.asarray(rows["k"]), jnp.asarray(rows["v"]), int8)
    k, v = (x.astype(jnp.int8) if int8 else x for x in found[:2])
    return Group(k.swapaxes(2, 3) if entries_last else k, v, *found[2:], entries_last=entries_last)


@pytest.mark.parametrize(
    ("length", "window", "entries_last"),
    [(None, None, True), (None, None, False), (None, 4, True), (3, 4, False), (400, None, True)],
)
def test_cache_equals_row(length, window, entries_last):
    """Four sequences of different ages in two groups, token by token, and the same tokens in one row."""
    rng = np.random.default_rng(9)
    t, rooms, slots = 12, (16, 13), 4
    prefix = None
    if length is not None:
        prefix = Prefix(*drawn(rng, 2, 2 * PREFIX_BLOCK, KV_HEADS, SIZE), jnp.int32(length))
    q, k, v = (drawn(rng, slots, BLOCK, n, SIZE) for n in (HEADS, KV_HEADS, KV_HEADS))
    positions, ends = (length or 0) + np.arange(BLOCK), np.where(np.arange(BLOCK) < t, t, np.arange(BLOCK) + 1)
    trees = forest(*(jnp.asarray(np.stack([x] * slots), jnp.int32) for x in (positions, ends)))
    how = {"scale": SCALE, "window": window, "prefix": prefix}
    want = np.asarray(jax.jit(lambda: attention(q, k, v, trees=trees, backend="reference", **how))())
    step = jax.jit(lambda q, k, v, cache: cached_attention(q, k, v, cache, **how))
    ages, index = np.array([0, 4, 3, 1]), np.arange(slots)
    held = zip((slice(0, 2), slice(2, 4)), rooms, strict=True)
    groups = tuple(group_of(k[some], v[some], ages[some], room, entries_last=entries_last) for some, room in held)
    for _ in range(8):
        new = [np.asarray(x)[index, ages][:, None] for x in (q, k, v)]
        got, cache = step(*new, Cache(groups, jnp.asarray(ages, jnp.int32)))
        np.testing.assert_allclose(got[:, 0], want[index, ages], atol=1e-5)
        ages, groups = ages + 1, cache.groups


def test_every_part_of_a_mesh_has_its_share_of_each_group():
    cache = Cache((None, None), jnp.zeros(8, jnp.int32), shards=2)  # type: ignore[arg-type]  the groups are not read
    parts = cache.split(jnp.arange(8))
    assert [part.tolist() for part in parts] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert cache.joined(parts).tolist() == list(range(8))


def test_a_slot_at_rest_writes_nothing():
    rng = np.random.default_rng(2)
    group = group_of(drawn(rng, 2, 5, KV_HEADS, SIZE), drawn(rng, 2, 5, KV_HEADS, SIZE), [5, 5], 8)
    new = drawn(rng, 2, 1, KV_HEADS, SIZE)
    cache = Cache((group,), jnp.asarray([5, 8], jnp.int32))
    _, after = cached_attention(drawn(rng, 2, 1, HEADS, SIZE), new, new, cache, scale=SCALE)
    np.testing.assert_array_equal(after.groups[0].v[1], group.v[1])
    np.testing.assert_array_equal(after.groups[0].k[1], group.k[1])
    np.testing.assert_array_equal(after.groups[0].v[0, :, 5], new[0, 0])
    np.testing.assert_array_equal(after.groups[0].k[0, :, :, 5], new[0, 0])


def test_int8_entries_are_within_half_a_step_and_attention_is_near():
    rng = np.random.default_rng(4)
    t, slots = 40, 3
    k, v = drawn(rng, slots, t, KV_HEADS, SIZE), drawn(rng, slots, t, KV_HEADS, SIZE)
    whole, rounded = (group_of(k, v, [t - 1] * slots, t, int8) for int8 in (False, True))
    assert rounded.k.dtype == rounded.v.dtype == jnp.int8
    lengths = jnp.full(slots, t - 1, jnp.int32)
    new = k[:, -1:], v[:, -1:]
    q = drawn(rng, slots, 1, HEADS, SIZE)
    want, _ = cached_attention(q, *new, Cache((whole,), lengths), scale=SCALE)
    got, after = cached_attention(q, *new, Cache((rounded,), lengths), scale=SCALE)
    for exact, codes, scale, axis in (
        (k, after.groups[0].k.swapaxes(2, 3), after.groups[0].k_scale, -1),
        (v, after.groups[0].v, after.groups[0].v_scale, -1),
    ):
        exact = exact.swapaxes(1, 2)
        np.testing.assert_allclose(scale, np.abs(exact).max(axis) / 127, rtol=1e-6)
        assert (np.abs(codes * scale[..., None] - exact) <= scale[..., None] * 0.501).all()
    # weights sum to one, so that values differ by half a step of theirs and what the scores' error moves
    assert 1e-4 < np.abs(got - want).max() < 0.03


def test_an_entry_of_zeros_stays_zero_in_int8():
    found = packed(jnp.zeros((1, 2, SIZE)), jnp.ones((1, 2, SIZE)), int8=True)
    assert not np.asarray(found.k).any()
    np.testing.assert_array_equal(found.v, np.full((1, 2, SIZE), 127))
