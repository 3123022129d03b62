"""Kernels that fsdp splits: they are brought together before they are used, a quantised one as it is stored."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.nn.quant import dequantise, quantise
from medjax.nn.transformer import Projection
from medjax.nn.transformer import product as split_product
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, shardings

INTO, OUT = 512, 256
STORED = {"nf4": "u8", "int4": "u8", "int8": "s8"}


def mesh() -> Mesh:
    return make_mesh("fsdp=4,tensor=2", jax.devices()[:8])


def product(kind: str, axes: tuple[str, str], constrain=None):
    options = {"constrain": constrain} if constrain else {}
    return Projection("btd,df->btf", (INTO, OUT), axes, quantisation=kind, **options)


def compiled(kind: str, axes: tuple[str, str], rows: int):
    """The product's sum of squares and its gradient, on a mesh; what it takes, and what it should give."""
    place = Constraint(mesh(), PRESETS["default"])
    module = product(kind, axes, place)
    kernel = np.random.default_rng(1).normal(size=(OUT, INTO)).astype(np.float32)
    x = np.random.default_rng(2).normal(size=(rows, 8, INTO)).astype(np.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)
    held = jax.device_put({"params": {"kernel": quantise(kind, kernel)}}, shardings(abstract, mesh(), place.rules))
    split = jax.device_put(x, NamedSharding(mesh(), PartitionSpec(("data", "fsdp"))))

    def loss(x, variables):
        return jnp.sum(module.apply(variables, x) ** 2)

    program = jax.jit(jax.value_and_grad(loss)).lower(split, nn.meta.unbox(held)).compile()
    return program, (split, nn.meta.unbox(held)), x, np.asarray(dequantise(kind, quantise(kind, kernel)), np.float64)


def gathered(text: str) -> list[tuple[str, int]]:
    """Type and number of elements of what all-gathers give."""
    return [
        (kind, int(np.prod([int(size) for size in shape.split(",")])))
        for kind, shape in re.findall(r"= (\w+)\[([\d,]+)\][^=]* all-gather\(", text)
    ]


@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("kind", STORED)
def test_codes_travel_and_not_what_they_stand_for(kind, axes):
    program, given, x, matrix = compiled(kind, axes, rows=24)
    value, gradient = program(*given)
    y = x.astype(np.float64) @ matrix.T
    np.testing.assert_allclose(value, (y**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * y @ matrix, rtol=1e-3, atol=0.05)
    sent = gathered(program.as_text())
    codes = OUT * INTO // (1 if kind == "int8" else 2)
    assert (STORED[kind], codes // 2) in sent  # half of the kernel: the other axis is split over tensor
    assert not [size for kind, size in sent if kind == "f32" and size >= OUT * INTO // 2]


PLACES = {
    "kernel": (("embed", "mlp"), ("fsdp", "tensor")),
    "adapter": (("embed", "rank"), ("fsdp", None)),
    "out": (("mlp", "embed"), ("tensor", "fsdp")),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_kernel_comes_whole_and_its_gradient_goes_home(case):
    axes, spec = PLACES[case]
    place = Constraint(mesh(), PRESETS["default"])
    x, kernel, dy = (
        np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        for seed, shape in ((1, (96, INTO)), (2, (INTO, OUT)), (3, (96, OUT)))
    )
    rows = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))
    home = NamedSharding(mesh(), PartitionSpec(*spec))

    def both(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: split_product(place, "ti,io->to", x, kernel, axes), x, kernel)
        return y, *pull(dy)

    given = jax.device_put(x, rows), jax.device_put(kernel, home), jax.device_put(dy, rows)
    program = jax.jit(both).lower(*given).compile()
    y, dx, dkernel = program(*given)
    np.testing.assert_allclose(y, x.astype(np.float64) @ kernel, atol=1e-3)
    np.testing.assert_allclose(dx, dy.astype(np.float64) @ kernel.T, atol=1e-3)
    np.testing.assert_allclose(dkernel, x.T.astype(np.float64) @ dy, atol=1e-3)
    assert dkernel.sharding.is_equivalent_to(home, 2)
    # whole along what tokens are split by: half of it where tensor splits the other axis
    assert ("f32", INTO * OUT // (1 if case == "adapter" else 2)) in gathered(program.as_text())
    assert split_product(place, "ti,io->to", jnp.asarray(x, jnp.bfloat16), kernel, axes).dtype == jnp.bfloat16


def test_no_layer_keeps_its_kernel_whole():
    """Even where everything is kept for the backward pass: eight layers need less than eight whole kernels."""
    place, layers, width = Constraint(make_mesh("fsdp=8", jax.devices()[:8]), PRESETS["default"]), 8, 512

    def loss(kernels, x):
        def layer(x, kernel):
            return jnp.tanh(split_product(place, "ti,io->to", x, kernel, ("embed", "mlp"))), None

        layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.everything_saveable)
        return jnp.sum(jax.lax.scan(layer, x, kernels)[0])

    kernels = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=place.sharding(
        (layers, width, width), None, "embed", "mlp"))  # fmt: skip
    x = jax.ShapeDtypeStruct((16, width), jnp.float32, sharding=place.sharding((16, width), "batch", None))
    needed = jax.jit(jax.grad(loss)).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * 4 * width * width


def test_one_device_is_told_nothing():
    place = Constraint(make_mesh("data=1", jax.devices()[:1]), PRESETS["default"])
    module = product("int8", ("embed", "mlp"), place)
    x = jnp.ones((64, 8, INTO))
    text = jax.jit(module.init_with_output).lower(jax.random.key(0), x).as_text()
    assert "sharding_constraint" not in text
    assert "@Sharding" not in text
