"""Rows split over devices against the reference on whole rows: packed documents, more devices than heads, gradients."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.attention import BLOCK, Prefix, attention, forest
from medjax.nn.context import choose_context, context_attention, splash_blocks, zigzag
from medjax.train.language_program import step_program
from medjax.train.settings import TrainSettings

SHARDS, HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 1, 16, 0.3
T = 2 * SHARDS * BLOCK
# documents within a piece, over many, of one token; padding over a whole piece; one document that fills its row
LENGTHS = ((90, 400, 1, 300), (T,))


def rows(lengths, t=T):
    """positions and ends [b, t] int32 of documents one after the other, then padding."""
    positions = np.zeros((len(lengths), t), np.int32)
    ends = np.tile(np.arange(1, t + 1, dtype=np.int32), (len(lengths), 1))
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            positions[row, start : start + size], ends[row, start : start + size] = np.arange(size), start + size
            start += size
    return jnp.asarray(positions), jnp.asarray(ends)


def arrays(heads=HEADS, kv_heads=KV_HEADS):
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(heads)
    shapes = [(len(LENGTHS), T, n, SIZE) for n in (heads, kv_heads, kv_heads, heads)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def sharding(rows=1, shards=SHARDS, heads=1):
    devices = np.asarray(jax.devices()[: rows * shards * heads]).reshape(rows, shards, heads)
    mesh = Mesh(devices, ("rows", "sequence", "heads"), axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, PartitionSpec("rows", "sequence", "heads", None))


@partial(jax.jit, static_argnums=0)
def values_and_gradients(run, q, k, v, d_out, positions, ends):
    """The output of run(q, k, v, trees), and the gradients of sum(output * d_out) by q, k and v."""
    out, pull = jax.vjp(lambda *x: run(*x, forest(positions, ends)), q, k, v)
    return out, *pull(d_out)


def reference(window=None):
    def run(q, k, v, trees):
        return attention(q, k, v, trees=trees, scale=SCALE, window=window, backend="reference")

    return run


def split(context, backend, place, window=None):
    """Rows in and out as they were; between, in the order that splits them."""
    shards = place.mesh.shape["sequence"]
    back = np.argsort(zigzag(jnp.arange(T)[None], shards)[0])

    def run(q, k, v, trees):
        q, k, v = (zigzag(x, shards) for x in (q, k, v))
        call = {"scale": SCALE, "window": window, "sharding": place, "interpret": True}
        return context_attention(context, backend, q, k, v, trees, **call)[:, back]

    return run


def close(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(jnp.abs(other).max()))


def test_zigzag():
    np.testing.assert_array_equal(zigzag(jnp.arange(12)[None], 3)[0], [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7])


@pytest.mark.parametrize("context", ["gather", "ring"])
@pytest.mark.parametrize("backend", ["blockwise", "splash"])
def test_more_devices_than_heads(context, backend):
    inputs = *arrays(), *rows(LENGTHS)
    got = values_and_gradients(split(context, backend, sharding()), *inputs)
    close(got, values_and_gradients(reference(), *inputs))


@pytest.mark.parametrize(
    ("context", "backend", "window"),
    [("gather", "splash", 150), ("ring", "blockwise", 150)],
)
def test_a_sliding_window(context, backend, window):
    inputs = *arrays(), *rows(LENGTHS)
    run = split(context, backend, sharding(), jnp.asarray(window) if context == "ring" else window)
    close(values_and_gradients(run, *inputs), values_and_gradients(reference(150), *inputs))


def test_rows_heads_and_tokens_split_at_once():
    """Two rows on two devices each, one head on each of two, one key head that both read."""
    inputs = *arrays(), *rows(LENGTHS)
    place = sharding(rows=2, shards=2, heads=2)
    got = values_and_gradients(split("ring", "blockwise", place), *inputs)
    assert got[0].sharding.num_devices == 8
    close(got, values_and_gradients(reference(), *inputs))


@pytest.mark.parametrize("backend", ["blockwise", "splash"])
def test_the_ring_computes_nothing_with_keys_that_no_document_reaches(backend):
    """Every piece is a document. NaN as a value spoils what is computed with it, also where its weight is 0."""
    q, k, v, _ = arrays()
    piece = T // (2 * SHARDS)
    inputs = q, k, v.at[:, :piece].set(jnp.nan), *rows(((piece,) * 2 * SHARDS,) * 2)
    run = split("ring", backend, sharding())
    out = jax.jit(lambda q, k, v, *where: run(q, k, v, forest(*where)))(*inputs)
    expected = np.zeros(T, bool)
    expected[:piece] = True
    if backend == "splash":
        expected[-piece:] = True  # on the same device as the first piece
    np.testing.assert_array_equal(np.isnan(out).any(axis=(0, 2, 3)), expected)


def test_branching_rows_are_nan_with_splash():
    q, k, v, _ = arrays()
    positions, ends = rows(LENGTHS)
    ends = ends.at[0, 10:30].set(30)
    run = split("ring", "splash", sharding())
    with pytest.raises(ValueError, match="row 0 has other than whole documents"):
        run(q, k, v, forest(positions, ends))


@pytest.mark.parametrize(
    ("wanted", "changed", "expected"),
    [
        ("auto", {}, "heads"),
        ("auto", {"shards": 16}, "ring"),
        ("auto", {"other_ways": 2}, "ring"),
        ("auto", {"shards": 16, "window": 4096}, "gather"),
        ("auto", {"shards": 16, "window": 40960}, "ring"),
        ("auto", {"shards": 16, "window": 4096, "backend": "blockwise"}, "ring"),
        ("auto", {"shards": 16, "backend": "cudnn"}, "heads"),
        ("auto", {"shards": 16, "tokens": 2048}, "heads"),
        ("ring", {"shards": 1}, "heads"),
        ("gather", {}, "gather"),
    ],
)
def test_choice(wanted, changed, expected):
    given = {"shards": 8, "heads": 8, "other_ways": 1, "window": None, "backend": "splash", "tokens": 32768}
    assert choose_context(wanted, **given | changed) == expected


@pytest.mark.parametrize(
    ("wanted", "changed", "message"),
    [
        ("ring", {"backend": "cudnn"}, "got ring with model.backend=cudnn, expected one of splash, blockwise; change"),
        ("ring", {"window": 4096}, "got ring with splash and a sliding window of 4096 tokens, .* use gather"),
        (
            "gather",
            {"tokens": 3000},
            "got 3000 tokens, expected a multiple of 2048, .* 16 pieces .* use 4096, or anoth",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(wanted, changed, message):
    given = {"shards": 8, "heads": 8, "other_ways": 1, "window": None, "backend": "splash", "tokens": 32768}
    with pytest.raises(ValueError, match=message):
        choose_context(wanted, **given | changed)


def test_blocks_of_a_run():
    """A row of 32768 tokens on 8 devices: 4096 each, in two pieces of 2048."""
    whole = ((1024, 1024, 512), (1024, 1024, 512), (1024, 1024))
    assert splash_blocks("heads", 32768, 8, 128, jnp.bfloat16) == {"rows": whole}
    assert splash_blocks("gather", 32768, 64, 128, jnp.bfloat16)["all keys"].forward == (256, 256, 256)
    found = splash_blocks("ring", 32768, 64, 128, jnp.bfloat16)
    assert {name: blocks.dq for name, blocks in found.items()} == {
        "own keys": (512, 512),
        "earlier keys": (512, 256),
        "later keys": (256, 512),
    }


def test_the_ring_of_a_training_step_on_tpu(tpu_devices):
    """Compiled for four chips: three kernels a pass, and of float arrays only keys, values and their gradients move."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"model_type": "llama", "vocab_size": 512, "num_hidden_layers": 2, "hidden_act": "silu", "rope_theta": 1e4}
    more |= {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    given = {"model.dtype": "bfloat16", "data.window": "2048", "train.batch_size": "1", "train.remat": "attention"}
    settings = load(TrainSettings, overrides=given | {"mesh.shape": "sequence=4"})
    program = step_program(settings, from_hugging_face(sizes | more), 100, devices=tpu_devices("v5e:2x2"))
    assert (program.backend, program.context) == ("splash", "ring")
    lines = program.lower().compile().as_text().splitlines()
    names = [found[1] for line in lines if (found := re.search(r"%splash_mha_(\w+?)_\S* = ", line))]
    assert Counter(names) == {"fwd": 3, "dkv": 3, "dq": 3}
    moved = set()
    for line in lines:
        kind = re.search(r" (all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\(", line)
        if kind and "/attention/" in line:
            moved |= {(kind[1], shape) for shape in re.findall(r"(?:bf16|f32)\[[\d,]*\]", line.split(kind[0])[0])}
    assert moved == {("collective-permute", f"{dtype}[1,1,512,128]") for dtype in ("bf16", "f32")}


def test_split_tokens_need_a_context():
    q, k, v, _ = arrays()
    call = {"trees": forest(*rows(LENGTHS)), "scale": SCALE, "sharding": sharding()}
    with pytest.raises(
        ValueError, match="got context=heads for rows split over 4 devices, expected one of gather, ring"
    ):
        attention(q, k, v, **call)
    with pytest.raises(ValueError, match="got a prefix with rows split over devices, expected none"):
        attention(q, k, v, prefix=Prefix(k[0], v[0], jnp.asarray(3)), context="ring", **call)
