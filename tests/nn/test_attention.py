"""Mask semantics by hand, every back end against the reference on packed and branching rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.nn.attention import BACKENDS, BLOCK, PREFIX_BLOCK, Prefix, attention, forest
from medjax.nn.forest import met

HEADS, KV_HEADS, SIZE = 6, 2, 10
SCALE = 0.4
T = 5 * BLOCK


def visible(ends):
    """[b, t, s] bool, straight from the definition: t sees s iff s <= t < ends[s]."""
    b, t = ends.shape
    seen = np.zeros((b, t, t), bool)
    for row in range(b):
        for query in range(t):
            for key in range(query + 1):
                seen[row, query, key] = query < ends[row, key]
    return seen


def by_hand(q, k, v, positions, ends, window=None, prefix=None):
    """The slow version, float64: each token gathers what it sees and takes the softmax of that alone."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    seen = visible(ends)
    for row, t in np.ndindex(*q.shape[:2]):
        own = np.flatnonzero(seen[row, t])
        keys, values, at = k[row, own], v[row, own], positions[row, own]
        if prefix is not None:
            n = int(prefix.length)
            keys, values = (np.concatenate([np.asarray(x)[:n], y]) for x, y in ((prefix.k, keys), (prefix.v, values)))
            at = np.concatenate([np.arange(n), at])
        near = np.ones(len(at), bool) if window is None else positions[row, t] - at < window
        for head in range(q.shape[2]):
            kv = head // (q.shape[2] // k.shape[2])
            scores = keys[near, kv] @ q[row, t, head] * SCALE
            weights = np.exp(scores - scores.max())
            out[row, t, head] = weights @ values[near, kv] / weights.sum()
    return out


def random_tree(rng, t, branching, start=0):
    """positions and ends [t] of one random tree in depth-first order, its root's position `start`."""
    parents = [-1]
    for token in range(1, t):
        # the new token hangs under the last one or under one of its ancestors: that keeps depth-first order
        parent = token - 1
        while parent > 0 and rng.random() < branching:
            parent = parents[parent]
        parents.append(max(parent, 0))
    positions, ends = np.full(t, start), np.arange(1, t + 1)
    for token in range(1, t):
        positions[token] = positions[parents[token]] + 1
    for token in reversed(range(1, t)):
        ends[parents[token]] = max(ends[parents[token]], ends[token])
    return positions, ends


def packed(rng, t, sizes, branching=0.1, start=0):
    """Trees of these sizes one after the other, then padding that sees itself."""
    positions, ends = np.full(t, start), np.arange(1, t + 1)
    place = 0
    for size in sizes:
        tree = random_tree(rng, size, branching, start)
        positions[place : place + size], ends[place : place + size] = tree[0], tree[1] + place
        place += size
    assert place <= t
    return positions, ends


def rows(seed, start=0):
    """Two rows of 5 blocks: many trees across block bounds with padding at the end; one large tree and a long chain."""
    rng = np.random.default_rng(seed)
    made = [packed(rng, T, (90, 150, 7, 200, 61, 1, 100), start=start), packed(rng, T, (400, 240), 0.02, start=start)]
    positions, ends = (np.stack(part).astype(np.int32) for part in zip(*made, strict=True))
    shapes = [(2, T, HEADS, SIZE), (2, T, KV_HEADS, SIZE), (2, T, KV_HEADS, SIZE)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return q, k, v, positions, ends


def random_prefix(rng, length, capacity):
    """Beyond its length the buffer holds large numbers that no score may meet."""
    k, v = (rng.normal(size=(capacity, KV_HEADS, SIZE)) for _ in "kv")
    k[length:], v[length:] = 50.0, 1e6
    return Prefix(jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32), jnp.int32(length))


def test_mask_of_the_module_docstring():
    """q q q a a b b b | q q: a sees q and its own past and never b; nothing sees across the bar."""
    ends = np.array([[8, 8, 8, 5, 5, 8, 8, 8, 10, 10]])
    want = [
        "1.........",
        "11........",
        "111.......",
        "1111......",
        "11111.....",
        "111..1....",
        "111..11...",
        "111..111..",
        "........1.",
        "........11",
    ]
    np.testing.assert_array_equal(visible(ends)[0], [[c == "1" for c in line] for line in want])


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend):
    """Scores are all 0, so a token's output is the mean of the values it sees: v[s] = s."""
    ends, positions = np.arange(1, BLOCK + 1)[None], np.zeros((1, BLOCK), np.int32)
    ends[0, :10] = [8, 8, 8, 5, 5, 8, 8, 8, 10, 10]
    positions[0, :10] = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1]
    q = k = jnp.zeros((1, BLOCK, 1, 2))
    v = jnp.broadcast_to(jnp.arange(BLOCK, dtype=jnp.float32)[None, :, None, None], (1, BLOCK, 1, 2))
    trees = forest(jnp.asarray(positions), jnp.asarray(ends))

    def means(**options):
        run = jax.jit(lambda options: attention(q, k, v, trees=trees, scale=1.0, backend=backend, **options))
        return run(options)[0, :12, 0, 0]

    whole = [0, 1 / 2, 1, 6 / 4, 10 / 5, 8 / 4, 14 / 5, 21 / 6, 8, 17 / 2, 10, 11]
    np.testing.assert_allclose(means(), whole, rtol=1e-6)
    # the last 3 positions: b's third token (position 5) sees positions 3, 4, 5 of its own branch: 5, 6, 7
    near = [0, 1 / 2, 1, (1 + 2 + 3) / 3, (2 + 3 + 4) / 3, (1 + 2 + 5) / 3, (2 + 5 + 6) / 3, 6, 8, 17 / 2, 10, 11]
    np.testing.assert_allclose(means(window=3), near, rtol=1e-6)
    values = jnp.full((PREFIX_BLOCK, 1, 2), 1e9).at[0].set(100.0).at[1].set(200.0)
    prefix = Prefix(jnp.zeros((PREFIX_BLOCK, 1, 2)), values, jnp.int32(2))
    np.testing.assert_allclose(means(prefix=prefix)[:4], [300 / 3, 301 / 4, 303 / 5, 306 / 6], rtol=1e-6)


def test_reference_equals_the_slow_version():
    """A block of two rows with branches, a prefix and a window, one token at a time in float64."""
    rng = np.random.default_rng(8)
    positions, ends = (
        np.stack(part)
        for part in zip(
            packed(rng, BLOCK, (50, 60), 0.2, start=9), packed(rng, BLOCK, (128,), 0.1, start=9), strict=True
        )
    )
    q, k, v = (jnp.asarray(rng.normal(size=(2, BLOCK, n, SIZE)), jnp.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    prefix = random_prefix(rng, 9, PREFIX_BLOCK)
    trees = forest(jnp.asarray(positions), jnp.asarray(ends))
    for options in ({}, {"prefix": prefix}, {"window": 6}, {"window": 12, "prefix": prefix}):
        got = jax.jit(lambda o: attention(q, k, v, trees=trees, scale=SCALE, backend="reference", **o))(options)
        np.testing.assert_allclose(got, by_hand(q, k, v, positions, ends, **options), atol=2e-6)


@pytest.fixture(scope="module")
def run():
    def both(q, k, v, positions, ends, window, prefix):
        trees = forest(positions, ends)
        return [
            attention(q, k, v, trees=trees, scale=SCALE, window=window, prefix=prefix, backend=backend)
            for backend in BACKENDS
        ]

    # a window known while compiling, and one that is data
    return {"static": jax.jit(both, static_argnums=5), "traced": jax.jit(both)}


@pytest.mark.parametrize("seed", range(3))
def test_blockwise_on_packed_forests(run, seed):
    reference, blockwise = run["static"](*rows(seed), None, None)
    np.testing.assert_allclose(blockwise, reference, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "window"), [("static", 50), ("static", 300), *(("traced", window) for window in (1, 50, BLOCK, 300))]
)
def test_blockwise_windows(run, kind, window):
    reference, blockwise = run[kind](*rows(4), window if kind == "static" else jnp.int32(window), None)
    np.testing.assert_allclose(blockwise, reference, atol=1e-5)
    whole, _ = run["static"](*rows(4), None, None)
    assert np.abs(np.asarray(reference) - np.asarray(whole)).max() > 0.1


@pytest.mark.parametrize("length", [0, 1, 200, PREFIX_BLOCK, PREFIX_BLOCK + 1, 2 * PREFIX_BLOCK])
@pytest.mark.parametrize("window", [None, 130, 800])
def test_blockwise_prefix(run, length, window):
    """Lengths that are no multiples of a block, in a buffer whose rest must not matter."""
    prefix = random_prefix(np.random.default_rng(length), length, 2 * PREFIX_BLOCK)
    arguments = rows(5, start=length)
    reference, blockwise = run["traced"](*arguments, None if window is None else jnp.int32(window), prefix)
    assert np.abs(np.asarray(reference)).max() < 10
    np.testing.assert_allclose(blockwise, reference, atol=1e-5)


def gradients(backend, q, k, v, positions, ends, towards, window):
    """Of the output times `towards`, with respect to q, k and v."""

    def total(q, k, v):
        out = attention(q, k, v, trees=forest(positions, ends), scale=SCALE, window=window, backend=backend)
        return jnp.sum(out.astype(jnp.float32) * towards)

    return jax.grad(total, argnums=(0, 1, 2))(q, k, v)


@pytest.fixture(scope="module")
def gradient_of():
    return jax.jit(gradients, static_argnums=0)


@pytest.mark.parametrize(("seed", "window"), [(0, None), (1, None), (2, 50), (3, 300), (4, 1)])
def test_gradient_of_blockwise(gradient_of, seed, window):
    """On branching trees, packed documents and padding, grouped heads, with and without a window."""
    arguments = rows(seed)
    towards = jnp.asarray(np.random.default_rng(seed).normal(size=arguments[0].shape), jnp.float32)
    window = None if window is None else jnp.int32(window)
    expected = gradient_of("reference", *arguments, towards, window)
    for got, want in zip(gradient_of("blockwise", *arguments, towards, window), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_gradient_of_blockwise_in_bfloat16(gradient_of):
    q, k, v, positions, ends = rows(8)
    towards = jnp.asarray(np.random.default_rng(8).normal(size=q.shape), jnp.float32)
    exact = gradient_of("reference", q, k, v, positions, ends, towards, None)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    for got, want in zip(gradient_of("blockwise", *half, positions, ends, towards, None), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(got, np.float32) - want) / np.linalg.norm(want)
        assert error < 0.02  # bfloat16 has 8 bits


def test_windows_by_layer_under_scan():
    """The window of each layer is data of a scan, as in models whose layers differ."""
    q, k, v, positions, ends = rows(6)
    trees = forest(jnp.asarray(positions), jnp.asarray(ends))
    windows = jnp.asarray([40, 2**30, 129], jnp.int32)

    def layer(carry, window):
        return carry, attention(q, k, v, trees=trees, scale=SCALE, window=window)

    _, got = jax.jit(lambda: jax.lax.scan(layer, 0, windows))()
    reference = jax.jit(lambda window: attention(q, k, v, trees=trees, scale=SCALE, window=window, backend="reference"))
    for window, out in zip(windows, got, strict=True):
        np.testing.assert_allclose(out, reference(window), atol=1e-5)


def test_bfloat16_is_near_float32():
    q, k, v, positions, ends = rows(7)
    trees = forest(jnp.asarray(positions), jnp.asarray(ends))
    run = jax.jit(
        lambda q, k, v, backend: attention(q, k, v, trees=trees, scale=SCALE, backend=backend), static_argnums=3
    )
    exact = run(q, k, v, "reference")
    for backend in BACKENDS:
        got = run(*(x.astype(jnp.bfloat16) for x in (q, k, v)), backend)
        assert got.dtype == jnp.bfloat16
        assert np.abs(np.asarray(got, np.float32) - exact).max() < 0.06


def test_blocks_that_meet_against_brute_force():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sizes = ((300, 100, 200), (20, 500), (640,), (128, 128, 128, 128), (60, 400, 30))[seed]
        made = [packed(rng, T, sizes, 0.05), packed(rng, T, sizes[::-1], 0.05)]
        positions, ends = (np.stack(part) for part in zip(*made, strict=True))
        seen = visible(ends).any(axis=0)  # in any row
        blocks = np.arange(T // BLOCK)
        want = [[seen[q * BLOCK :][:BLOCK, k * BLOCK :][:, :BLOCK].any() for k in blocks] for q in blocks]
        assert met(forest(jnp.asarray(positions), jnp.asarray(ends)), blocks, blocks).tolist() == want


def test_a_common_beginning_is_met_without_what_lies_between():
    """Two sequences that share 10 tokens: the second, a block further on, skips the rest of the first."""
    ends = np.arange(1, T + 1)
    ends[:10] = 3 * BLOCK
    ends[10 : 2 * BLOCK] = 2 * BLOCK
    ends[2 * BLOCK : 3 * BLOCK] = 3 * BLOCK
    blocks = np.arange(T // BLOCK)
    found = met(forest(jnp.zeros((1, T), jnp.int32), jnp.asarray(ends)[None]), blocks, blocks)
    assert np.flatnonzero(found[2]).tolist() == [0, 2]


def test_gradients_stay_within_a_tree(gradient_of):
    """A cotangent on one document reaches its own queries, keys and values, and nothing of any other."""
    q, k, v, positions, ends = rows(13)
    start, stop = 90, 90 + 150  # the second tree of row 0, across a block bound
    cotangent = np.zeros((2, T, HEADS, SIZE), np.float32)
    cotangent[0, start:stop] = 1.0
    for part in gradient_of("blockwise", q, k, v, positions, ends, cotangent, None):
        part = np.array(part)
        assert np.abs(part[0, start:stop]).max() > 0.01
        part[0, start:stop] = 0
        assert not part.any()


def test_refusals():
    q, k, v, positions, ends = rows(0)
    with pytest.raises(ValueError, match=r"backend='flash', expected one of reference, blockwise"):
        attention(q, k, v, trees=forest(jnp.asarray(positions), jnp.asarray(ends)), scale=1.0, backend="flash")
    with pytest.raises(ValueError, match=r"rows of 100 tokens, expected a multiple of 128"):
        forest(jnp.zeros((1, 100), jnp.int32), jnp.zeros((1, 100), jnp.int32))
