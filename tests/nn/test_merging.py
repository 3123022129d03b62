"""Adapters into kernels and out again, against NumPy, on one device and on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medjax.nn.merging import merge, unmerge
from medjax.parallel.mesh import make_mesh

LAYERS, EMBED, HEADS, KV, HEAD_DIM, MLP, RANK = 3, 24, 6, 2, 10, 40, 5
KERNELS = {
    "attention/query": ((EMBED,), (HEADS, HEAD_DIM)),
    "attention/key": ((EMBED,), (KV, HEAD_DIM)),
    "attention/value": ((EMBED,), (KV, HEAD_DIM)),
    "attention/out": ((HEADS, HEAD_DIM), (EMBED,)),
    "mlp/gate": ((EMBED,), (MLP,)),
    "mlp/up": ((EMBED,), (MLP,)),
    "mlp/down": ((MLP,), (EMBED,)),
}
TARGETS = ("attention/query", "attention/value", "attention/out", "mlp/up", "mlp/down")
RNG = np.random.default_rng(2)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def nested(named):
    tree = {}
    for name, value in named.items():
        block, module = name.split("/")
        tree.setdefault("layers", {}).setdefault(block, {})[module] = value
    return tree


@pytest.fixture
def kernels():
    return {name: draw(LAYERS, *into, *out) for name, (into, out) in KERNELS.items()}


@pytest.fixture
def factors():
    return {
        name: {"a": draw(LAYERS, *KERNELS[name][0], RANK), "b": draw(LAYERS, RANK, *KERNELS[name][1])}
        for name in TARGETS
    }


def on_devices(kernels, dtype=jnp.float32):
    tree = nested({name: {"kernel": jnp.asarray(kernel, dtype)} for name, kernel in kernels.items()})
    return tree | {"embedding": jnp.ones((7, EMBED), dtype)}


def product(a, b, layer):
    """a @ b of one layer, element by element in float64."""
    left = a[layer].astype(np.float64).reshape(-1, a.shape[-1])
    right = b[layer].astype(np.float64).reshape(b.shape[1], -1)
    return sum(np.outer(left[:, r], right[r]) for r in range(RANK)).reshape(*a.shape[1:-1], *b.shape[2:])


def found(params, name):
    block, module = name.split("/")
    return np.asarray(params["layers"][block][module]["kernel"], np.float64)


def test_merge_adds_the_scaled_product_of_each_layer(kernels, factors):
    merged = merge(on_devices(kernels), nested(factors), 0.37)
    for name, kernel in kernels.items():
        for layer in range(LAYERS):
            want = kernel[layer].astype(np.float64)
            if name in factors:
                want = want + 0.37 * product(**factors[name], layer=layer)
            np.testing.assert_allclose(found(merged, name)[layer], want, rtol=0, atol=3e-6, err_msg=name)


def test_unmerge_gives_the_base_back(kernels, factors):
    base = on_devices(kernels)
    again = unmerge(merge(base, nested(factors), 0.37), nested(factors), 0.37)
    for name, kernel in kernels.items():
        np.testing.assert_allclose(found(again, name), kernel, rtol=0, atol=4e-6, err_msg=name)
        if name not in factors:
            np.testing.assert_array_equal(found(again, name), kernel)
    assert again["embedding"] is base["embedding"]


def test_bfloat16_is_rounded_once_from_a_float32_sum(kernels, factors):
    """A product taken in bfloat16 would be off by several last places."""
    base = on_devices(kernels, jnp.bfloat16)
    merged = merge(base, nested(factors), 0.37)
    for name in factors:
        for layer in range(LAYERS):
            exact = found(base, name)[layer] + 0.37 * product(**factors[name], layer=layer)
            got = found(merged, name)[layer]
            assert (np.abs(got - exact) <= np.abs(exact) * 2**-8 * 1.01 + 1e-6).all(), name
    assert merged["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16


def test_query_key_value_touches_three_kernels():
    kernels = {f"attention/{part}": draw(LAYERS, EMBED, HEADS, HEAD_DIM) for part in ("query", "key", "value")}
    pair = {"a": draw(LAYERS, EMBED, RANK), "b": draw(LAYERS, RANK, 3, HEADS, HEAD_DIM)}
    merged = merge(on_devices(kernels), nested({"attention/query_key_value": pair}), 2.0)
    for index, (name, kernel) in enumerate(kernels.items()):
        for layer in range(LAYERS):
            want = kernel[layer] + 2.0 * product(pair["a"], pair["b"][:, :, index], layer)
            np.testing.assert_allclose(found(merged, name)[layer], want, rtol=0, atol=1e-5, err_msg=name)


def test_kernels_keep_their_sharding(kernels, factors):
    mesh = make_mesh("fsdp=2,tensor=2,data=2")
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
    base = on_devices(kernels)
    whole = merge(base, nested(factors), 0.37)
    base["layers"]["attention"]["query"]["kernel"] = jax.device_put(kernels["attention/query"], sharding)
    merged = merge(base, nested(factors), 0.37)
    query = merged["layers"]["attention"]["query"]["kernel"]
    assert query.sharding == sharding
    assert query.addressable_shards[0].data.shape == (LAYERS, EMBED // 2, HEADS // 2, HEAD_DIM)
    np.testing.assert_allclose(found(merged, "attention/query"), found(whole, "attention/query"), rtol=0, atol=1e-6)


def test_donated_kernels_are_used_up(kernels, factors):
    base, kept = on_devices(kernels), on_devices(kernels)
    merged = merge(base, nested(factors), 0.37, donate=True)
    assert base["layers"]["attention"]["query"]["kernel"].is_deleted()
    assert not base["layers"]["attention"]["key"]["kernel"].is_deleted()
    want = merge(kept, nested(factors), 0.37)
    np.testing.assert_array_equal(found(merged, "attention/query"), found(want, "attention/query"))


def test_what_cannot_be_merged_is_named(kernels, factors):
    base = on_devices({name: kernel for name, kernel in kernels.items() if name != "mlp/up"})
    with pytest.raises(ValueError, match=r"^lora/layers/mlp/up: the model has no layers/mlp/up, expected a kernel"):
        merge(base, nested(factors), 1.0)
    base = on_devices(kernels)
    base["layers"]["mlp"]["down"]["kernel"] = {"codes": jnp.zeros(3), "scale": jnp.zeros(3)}
    text = "layers/mlp/down/kernel: got quantised weights (codes, scale), expected floats; load the base without"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        merge(base, nested(factors), 1.0)
