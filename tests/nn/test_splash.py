"""Block sizes of the TPU kernel: the choice by counting, and that the longest compile for every chip."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medjax.nn import splash
from medjax.nn.kernels import kernel_attention
from medjax.nn.splash import block_sizes


def cheapest(t, longest, window=None):
    """Of square blocks, the one with the least steps x (512^2 + its scores), over blocks in which anything is seen."""

    def cost(size):
        index, seen = np.arange(size), 0
        for q, k in itertools.product(range(0, t, size), repeat=2):
            distance = (q + index)[:, None] - (k + index)
            seen += bool(((distance >= 0) & (distance < (window or t))).any())
        return seen * (512**2 + size**2)

    return min((size for size in range(128, longest + 1, 128) if t % size == 0), key=cost)


@pytest.mark.parametrize(("t", "window"), [(256, None), (1920, None), (2048, None), (4096, None), (4096, 300)])
def test_the_cheapest_blocks(t, window):
    size = cheapest(t, 1024, window)
    inner = max(part for part in (128, 256, 384, 512) if size % part == 0)
    found = block_sizes(t, t, 64, jnp.bfloat16, window=window)
    assert found == ((size, size, inner), (size, size, inner), (size, size))


def test_blocks_by_dtype_and_head_size():
    assert block_sizes(32768, 32768, 128, jnp.bfloat16) == ((1024, 1024, 512), (1024, 1024, 512), (1024, 1024))
    assert block_sizes(32768, 32768, 128, jnp.float32) == ((512, 512, 512), (1024, 1024, 512), (512, 512))
    assert block_sizes(32768, 32768, 512, jnp.float32) == ((128, 128, 128), (128, 128, 128), (128, 128))
    # without a diagonal nothing is wasted: as long as both sides allow
    assert block_sizes(256, 2048, 128, jnp.bfloat16, causal=False).forward == (256, 1024, 512)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("bytes_of_number", "head_dim"), splash._LONGEST)
def test_the_kernels_fit_the_vector_memory(tpu_devices, name, bytes_of_number, head_dim):
    """At their longest, float32 in full precision."""
    dtype = {2: jnp.bfloat16, 4: jnp.float32}[bytes_of_number]
    mesh = Mesh(np.asarray(tpu_devices(name)[:1]), ("rows",), axis_types=(AxisType.Auto,))
    one = NamedSharding(mesh, PartitionSpec())
    q = jax.ShapeDtypeStruct((1, 4096, 2, head_dim), dtype, sharding=one)
    ends = jax.ShapeDtypeStruct((1, 4096), jnp.int32, sharding=one)
    forward, dkv, dq = block_sizes(4096, 4096, head_dim, dtype)
    assert (forward[0], dkv[0], dq[0]) == splash._LONGEST[bytes_of_number, head_dim]

    def total(q, ends):
        out = kernel_attention("splash", q, q, q, ends, scale=0.3, window=None, sharding=None)
        return jnp.sum(out.astype(jnp.float32))

    with jax.default_matmul_precision("highest" if bytes_of_number == 4 else "default"):
        text = jax.jit(jax.grad(total)).lower(q, ends).compile().as_text()
    assert sorted(re.findall(r"%splash_mha_(\w+?)_\S* = ", text)) == ["dkv", "dq", "fwd"]
